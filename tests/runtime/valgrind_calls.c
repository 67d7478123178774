/* Linked into the launcher under valgrind (`-Wl,--wrap=syscall,--wrap=ioctl`), which up to 3.19 does not know the calls for mounts.
 *
 * A program that valgrind does not follow (this file with -DCALLER, at CALLER_PATH) makes such a call in its place, with its
 * descriptors, in its mount namespace, and sends a descriptor that the call returns back by a socket. */
#include "../../runtime/launcher/shifter.h"

/* A call's arguments: a number, a descriptor, a text, bytes (of the size that `bytes` says). */
static const struct known {
    long number;
    const char *arguments;
    size_t bytes;
    bool descriptor; /* returns one */
} known[] = {
    {SYS_openat2, "dtbn", sizeof(struct open_how), true},    {SYS_open_tree, "dtn", 0, true},
    {SYS_fsopen, "tn", 0, true},                             {SYS_fsmount, "dnn", 0, true},
    {SYS_fsconfig, "dnttn", 0, false},                       {SYS_move_mount, "dtdtn", 0, false},
    {SYS_mount_setattr, "dtnbn", sizeof(struct mount_attr), false},
};

static const struct known *find_call(long number)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == number)
            return &known[i];
    return NULL;
}

static int message(int socket, int *descriptor, bool sends)
{
    char text[1] = {0}, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec data = {.iov_base = text, .iov_len = sizeof text};
    struct msghdr head = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&head);
    *part = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    if (sends)
        memcpy(CMSG_DATA(part), descriptor, sizeof(int));
    ssize_t done = sends ? sendmsg(socket, &head, 0) : recvmsg(socket, &head, MSG_CMSG_CLOEXEC);
    if (done == 1 && !sends)
        memcpy(descriptor, CMSG_DATA(part), sizeof(int));
    return done == 1 ? 0 : -1;
}

#ifdef CALLER
/* NUMBER SOCKET ARGUMENT...: ends with the call's errno */
int main(int count, char **words)
{
    const struct known *call = find_call(strtol(words[1], NULL, 10));
    long arguments[6] = {0};
    for (int i = 0; i + 3 < count; i++) {
        char *word = words[i + 3], type = call->arguments[i];
        if (type == 't')
            arguments[i] = *word ? (long)(word + 1) : 0;
        else if (type != 'b')
            arguments[i] = strtol(word, NULL, 10);
        else {
            unsigned char *bytes = calloc(1, call->bytes);
            for (size_t at = 0; at < call->bytes; at++)
                sscanf(word + 2 * at, "%2hhx", bytes + at);
            arguments[i] = (long)bytes;
        }
    }
    int result = (int)syscall(call->number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]);
    if (result < 0)
        return errno;
    return call->descriptor && message((int)strtol(words[2], NULL, 10), &result, true) < 0 ? errno : 0;
}
#else
#include <valgrind/memcheck.h>

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

static long call_elsewhere(const struct known *call, const long *arguments)
{
    static char text[5][5000], number[12], socket_text[12];
    char *words[9] = {CALLER_PATH, number, socket_text};
    int pair[2], status = 0, descriptor = -1;
    for (size_t i = 0; call->arguments[i]; i++) {
        words[i + 3] = text[i];
        const unsigned char *bytes = (void *)arguments[i];
        if (call->arguments[i] == 't')
            snprintf(text[i], sizeof text[i], "%s%s", bytes ? "=" : "", bytes ? (const char *)bytes : "");
        else if (call->arguments[i] != 'b')
            snprintf(text[i], sizeof text[i], "%d", (int)arguments[i]);
        for (size_t at = 0; call->arguments[i] == 'b' && at < call->bytes; at++)
            snprintf(text[i] + 2 * at, 3, "%02x", bytes[at]); /* memcheck sees here whether each was written */
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    snprintf(number, sizeof number, "%ld", call->number);
    snprintf(socket_text, sizeof socket_text, "%d", pair[1]);
    pid_t child = fork();
    if (child == 0) {
        for (int fd = 3; fd < 64; fd++)
            fcntl(fd, F_SETFD, 0);
        execve(words[0], words, words + 8);
        _exit(ENOSYS);
    }
    if (child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0 && call->descriptor &&
        message(pair[0], &descriptor, false) < 0)
        status = EIO << 8;
    close(pair[0]);
    close(pair[1]);
    errno = child < 0 ? EAGAIN : WEXITSTATUS(status);
    return errno ? -1 : call->descriptor ? descriptor : 0;
}

long __wrap_syscall(long number, ...)
{
    long arguments[6];
    va_list values;
    va_start(values, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(values, long);
    va_end(values);
    const struct known *call = find_call(number);
    if (call)
        return call_elsewhere(call, arguments);
    return __real_syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list values;
    va_start(values, request);
    void *data = va_arg(values, void *);
    va_end(values);
    int result = __real_ioctl(fd, request, data);
    if (request == LOOP_GET_STATUS64 && result == 0)
        VALGRIND_MAKE_MEM_DEFINED(data, sizeof(struct loop_info64));
    return result;
}
#endif
