/* A kernel of the fuzzer's own: what the launcher calls answers from the input, and nothing acts on the system.
 *
 * Each call takes a byte of the tape (`fake_tape`): a low one makes it fail, with one of `errors`; another is part of its answer.
 * At the tape's end every call succeeds. Descriptors are counted as a kernel does, so closing one that is not open ends the run,
 * and what `realloc` gave is freed after each input (`fake_fresh_memory`), as at exit. All names begin with fake_, for the launcher's
 * are in the same file. Included before the sources. */
#include <assert.h>
#include <setjmp.h>
#include <sys/syscall.h>
#include <unistd.h>

static long fake_syscall(long number, ...);
#define syscall(...) fake_syscall(__VA_ARGS__) /* kernel.h has functions that call it */
#include "../../runtime/launcher/shifter.h"

static const uint8_t *fake_tape, *fake_given; /* fake_given: what a file, or the planner, has to say */
static size_t fake_tape_left, fake_given_left, fake_given_size;
static const char *fake_configuration; /* what udiRoot.conf has to say instead */
static bool fake_reads_configuration;
static jmp_buf fake_ended; /* _exit comes back here */
static volatile size_t fake_seen;
static uid_t fake_filesystem_uid;
static gid_t fake_filesystem_gid;
static int fake_group_total;
static bool fake_powerless; /* no capability is left */
static char *fake_none[] = {NULL}, **fake_environ = fake_none;

static unsigned fake_from_tape(void)
{
    return fake_tape_left ? (fake_tape_left--, *fake_tape++) : 255;
}

/* 0, or -1 and errno */
static int fake_answer(void)
{
    static const int errors[] = {EINVAL, EPERM, ENOENT, EEXIST, EBUSY, ENOMEM, EOPNOTSUPP, EINTR, ECONNRESET, ENXIO, EAGAIN, EISDIR};
    unsigned byte = fake_from_tape();
    if (byte >= 64)
        return 0;
    errno = errors[byte % (sizeof errors / sizeof *errors)];
    return -1;
}

/* reads every byte, so that a sanitizer sees what the kernel would */
static void fake_read_bytes(const void *data, size_t size)
{
    const volatile uint8_t *at = data;
    for (size_t i = 0; i < size; i++)
        fake_seen += at[i];
}

static int fake_read_text(const char *text)
{
    if (text)
        fake_read_bytes(text, strlen(text) + 1);
    return fake_answer();
}

static void fake_read_texts(char *const *texts)
{
    for (; *texts; texts++)
        fake_seen += strlen(*texts);
}

/* descriptors */
static bool fake_is_open[1024];

static int fake_new_descriptor(void)
{
    if (fake_answer() < 0)
        return -1;
    int fd = 3;
    while (fd < 1023 && fake_is_open[fd])
        fd++;
    fake_is_open[fd] = true;
    return fd;
}

static int fake_close(int fd)
{
    assert(fd < 0 || (fd < 1024 && (fd < 3 || fake_is_open[fd])));
    if (fd >= 0)
        fake_is_open[fd] = false;
    return 0;
}

static int fake_open(const char *path, int flags, ...)
{
    fake_seen += strlen(path) + (size_t)flags;
    fake_reads_configuration = fake_configuration && strcmp(path, config_path) == 0;
    return fake_new_descriptor();
}

static int fake_pair(int pair[2])
{
    pair[0] = fake_new_descriptor();
    return pair[1] = pair[0] < 0 ? -1 : fake_new_descriptor();
}

/* memory */
static void *fake_blocks[1 << 16];
static size_t fake_block_count;

static void *fake_realloc(void *old, size_t size)
{
    size_t place = fake_block_count;
    for (size_t i = fake_block_count; old && i-- > 0;)
        if (fake_blocks[i] == old)
            place = i;
    assert((!old || place < fake_block_count) && place < sizeof fake_blocks / sizeof *fake_blocks);
    if (place == fake_block_count)
        fake_block_count++;
    return fake_blocks[place] = realloc(old, size);
}

static char *fake_directory(void)
{
    return fake_answer() < 0 ? NULL : strcpy(fake_realloc(NULL, 8), "/srv/me");
}

static void fake_fresh_memory(void)
{
    while (fake_block_count)
        free(fake_blocks[--fake_block_count]);
    memset(fake_is_open, 0, sizeof fake_is_open);
}

/* files: root's, of the given size, unless the tape says otherwise */
static int fake_stat(struct stat *status)
{
    static const mode_t modes[] = {S_IFDIR | 0700, S_IFREG | 0644, S_IFREG | 0666, S_IFIFO | 0600, S_IFSOCK | 0600};
    memset(status, 0, sizeof *status);
    if (fake_answer() < 0)
        return -1;
    unsigned byte = fake_from_tape();
    status->st_mode = byte == 255 ? S_IFREG | 0600 : modes[byte % (sizeof modes / sizeof *modes)];
    status->st_uid = byte & 128 ? 0 : byte;
    status->st_nlink = byte & 64 ? 1 : byte & 15;
    status->st_size = fake_reads_configuration ? (off_t)strlen(fake_configuration) : (off_t)fake_given_size;
    return 0;
}

static int fake_stat_path(const char *path, struct stat *status)
{
    fake_seen += strlen(path);
    int result = fake_stat(status);
    status->st_size = 7;
    return result;
}

static int fake_statx(struct statx *status)
{
    memset(status, 0, sizeof *status);
    status->stx_attributes = fake_from_tape() & 1 ? STATX_ATTR_MOUNT_ROOT : 0;
    return fake_answer();
}

static ssize_t fake_read(void *data, size_t room)
{
    if (fake_answer() < 0)
        return -1;
    unsigned byte = fake_from_tape();
    if (fake_reads_configuration)
        return (ssize_t)strlen(strncpy(data, fake_configuration, room));
    size_t size = room < fake_given_left ? room : fake_given_left;
    if (byte < 64 && byte < size)
        size = byte;
    if (size)
        memcpy(data, fake_given, size);
    fake_given += size;
    fake_given_left -= size;
    return (ssize_t)size;
}

static ssize_t fake_write(const void *data, size_t size)
{
    fake_read_bytes(data, size);
    return fake_answer() < 0 ? -1 : (ssize_t)size;
}

static int fake_ioctl(int fd, unsigned long request, void *data)
{
    if (request == LOOP_GET_STATUS64)
        memset(data, 0, sizeof(struct loop_info64));
    if (request == LOOP_CONFIGURE)
        fake_read_bytes(data, sizeof(struct loop_config));
    return fake_answer() < 0 ? -1 : (fd & 0) + (request == LOOP_CTL_GET_FREE ? (int)fake_from_tape() : 0);
}

/* processes and rights */
static pid_t fake_fork(void)
{
    return fake_answer() < 0 ? -1 : fake_from_tape() % 4 ? 100 : 0;
}

static pid_t fake_wait(int *status)
{
    if (status)
        *status = fake_from_tape() % 4 ? 0 : (int)fake_from_tape() << 7;
    return fake_answer() < 0 ? -1 : 100;
}

static int fake_execve(const char *path, char *const *words, char *const *environment)
{
    fake_seen += strlen(path);
    fake_read_texts(words);
    fake_read_texts(environment);
    errno = ENOENT;
    return -1;
}

static int fake_prctl(int option, unsigned long value)
{
    if (option != PR_CAPBSET_DROP || value < 41)
        return fake_answer();
    errno = EINVAL;
    return -1;
}

static int fake_groups(int room, gid_t *list)
{
    if (fake_group_total < 0)
        fake_group_total = (int)(fake_from_tape() % 40); /* a process's own groups do not change between two calls */
    for (int i = 0; i < room && i < fake_group_total; i++)
        list[i] = fake_from_tape();
    return fake_answer() < 0 ? -1 : fake_group_total;
}

static int fake_ids(unsigned *real, unsigned *effective, unsigned *saved)
{
    *real = 65534;
    *effective = *saved = 0;
    return fake_answer();
}

static int fake_take_user(uid_t effective)
{
    errno = EPERM;
    if ((fake_powerless && effective == 0) || fake_answer() < 0)
        return -1;
    fake_filesystem_uid = effective;
    return 0;
}

static int fake_take_id(unsigned *own, unsigned id)
{
    int old = (int)*own;
    if (id != ~0u && fake_from_tape() >= 64)
        *own = id;
    return old;
}

/* the calls that the C library has no function for, or not every one */
static long fake_syscall(long number, ...)
{
    long words[5];
    va_list values;
    va_start(values, number);
    for (int i = 0; i < 5; i++)
        words[i] = va_arg(values, long);
    va_end(values);
    switch (number) {
    case SYS_openat2:
    case SYS_open_tree: fake_read_text((char *)words[1]); return fake_new_descriptor();
    case SYS_fsopen: fake_read_text((char *)words[0]); return fake_new_descriptor();
    case SYS_fsmount: return fake_new_descriptor();
    case SYS_fsconfig: return fake_read_text((char *)words[2]) < 0 ? -1 : fake_read_text((char *)words[3]);
    case SYS_move_mount: return fake_read_text((char *)words[1]) < 0 ? -1 : fake_read_text((char *)words[3]);
    case SYS_mount_setattr: fake_read_bytes((void *)words[3], sizeof(struct mount_attr)); return fake_read_text((char *)words[1]);
    case SYS_statx: fake_read_text((char *)words[1]); return fake_statx((struct statx *)words[4]);
    case SYS_capset: fake_powerless = true; return fake_answer();
    case SYS_setresuid: return fake_take_user((uid_t)words[1]);
    default: return fake_answer();
    }
}

#define environ fake_environ
#define realloc(old, size) fake_realloc(old, size)
#define get_current_dir_name() fake_directory()
#define _exit(status) longjmp(fake_ended, 1)
#define time(when) 0
#define usleep(long) (void)0
#define close(fd) fake_close(fd)
#define open(...) fake_open(__VA_ARGS__)
#define openat(directory, ...) fake_open(__VA_ARGS__)
#define mkostemp(path, flags) (fake_read_text(path), fake_new_descriptor())
#define dup2(old, new) fake_answer()
#define fcntl(fd, ...) fake_answer()
#define socketpair(family, type, protocol, pair) fake_pair(pair)
#define stat(path, status) fake_stat_path(path, status)
#define fstat(fd, status) fake_stat(status)
#define read(fd, data, size) fake_read(data, size)
#define recv(fd, data, size, flags) fake_read(data, size)
#define pread(fd, data, size, offset) fake_read(data, size)
#define write(fd, data, size) fake_write(data, size)
#define pwrite(fd, data, size, offset) fake_write(data, size)
#define send(fd, data, size, flags) fake_write(data, size)
#define sendmsg(...) fake_answer()
#define sendfile(...) fake_answer()
#define dprintf(fd, format, text) fake_read_text(text)
#define ftruncate(...) fake_answer()
#define unlink(path) fake_read_text(path)
#define unlinkat(directory, path, flags) fake_read_text(path)
#define mkdir(path, mode) fake_read_text(path)
#define mkdirat(directory, path, mode) fake_read_text(path)
#define symlinkat(value, directory, path) (fake_read_text(value) < 0 ? -1 : fake_read_text(path))
#define utimensat(directory, path, ...) fake_read_text(path)
#define fchmodat(directory, path, ...) fake_read_text(path)
#define fchownat(directory, path, ...) fake_read_text(path)
#define fchown(...) fake_answer()
#define flock(...) fake_answer()
#define ioctl(fd, request, ...) fake_ioctl(fd, request, (void *)(size_t)(__VA_ARGS__ + 0))
#define mount(source, target, kind, flags, data) (fake_read_text(target) < 0 ? -1 : fake_read_text(data))
#define umount2(...) fake_answer()
#define unshare(...) fake_answer()
#define chroot(path) fake_read_text(path)
#define chdir(path) fake_read_text(path)
#define fchdir(...) fake_answer()
#define fork() fake_fork()
#define waitpid(child, status, flags) fake_wait(status)
#define execve(path, words, environment) fake_execve(path, words, environment)
#define execvp(path, words) fake_execve(path, words, environ)
#define prctl(option, value, ...) fake_prctl(option, value)
#define getgroups(room, list) fake_groups(room, list)
#define setgroups(...) fake_answer()
#define getresuid(real, effective, saved) fake_ids(real, effective, saved)
#define getresgid(real, effective, saved) fake_ids(real, effective, saved)
#define setuid(...) (-1)
#define setfsuid(id) fake_take_id(&fake_filesystem_uid, id)
#define setfsgid(id) fake_take_id(&fake_filesystem_gid, id)
#define umask(mask) 022
#define setsid() fake_answer()
#define signal(number, handler) SIG_DFL
#define sigprocmask(...) fake_answer()
