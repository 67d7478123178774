/* The kernel's floor for a private start: the mounts, the few files and the dropped rights of a container, and nothing else:
 * no options, no configuration, no checks, no messages. Setuid root, for measurements only.
 *   floor held DIRECTORY ROOT COMMAND...          the image is mounted at DIRECTORY already
 *   floor own  IMAGE:squashfs|erofs ROOT COMMAND... it gets its own loop device (erofs: straight from the file) */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TRY(call) do { if ((call) < 0) { perror(#call); exit(1); } } while (0)

static int fs(const char *kind, const char *key, const char *value, int flags)
{
    int c = fsopen(kind, 0), tree;
    if (key) TRY(fsconfig(c, FSCONFIG_SET_STRING, key, value, 0));
    if (flags & MOUNT_ATTR_RDONLY) TRY(fsconfig(c, FSCONFIG_SET_FLAG, "ro", NULL, 0));
    TRY(fsconfig(c, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    TRY(tree = fsmount(c, 0, flags | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));
    close(c);
    return tree;
}
static void put(int tree, const char *place) { TRY(move_mount(tree, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH)); }
static void bind_to(const char *from, const char *to, int flags)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID};
    int tree = open_tree(AT_FDCWD, from, OPEN_TREE_CLONE | flags);
    TRY(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | flags, &attr, sizeof attr));
    put(tree, to);
    close(tree);
}
int main(int count, char **words)
{
    static const char *files[] = {"etc/passwd", "etc/group", "etc/shadow", "etc/hosts", "etc/resolv.conf", "etc/nsswitch.conf"};
    char device[64], *format = strrchr(words[2], ':');
    int image = -1, capability = 0, uid = getuid(), gid = getgid();
    if (count < 5) return 2;
    if (!strcmp(words[1], "own")) {
        *format++ = 0;
        int file = open(words[2], O_RDONLY);
        snprintf(device, sizeof device, "/proc/self/fd/%d", file);
        if (!strcmp(format, "squashfs")) {
            struct loop_config config = {.fd = file, .info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY};
            int control = open("/dev/loop-control", O_RDWR), loop;
            do {
                snprintf(device, sizeof device, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
                loop = open(device, O_RDONLY);
            } while (ioctl(loop, LOOP_CONFIGURE, &config) < 0 && errno == EBUSY && close(loop) == 0);
        }
        image = fs(format, "source", device, MOUNT_ATTR_RDONLY);
    }
    TRY(unshare(CLONE_NEWNS));
    TRY(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL));
    if (image < 0) image = open_tree(AT_FDCWD, words[2], OPEN_TREE_CLONE);
    put(image, words[3]);
    TRY(fchdir(image));
    put(fs("proc", NULL, NULL, 0), "proc");
    bind_to("/sys", "sys", AT_RECURSIVE);
    bind_to("/dev", "dev", AT_RECURSIVE);
    bind_to("/tmp", "tmp", 0);
    bind_to("/var/tmp", "var/tmp", 0);
    int lower = open("etc", O_PATH);
    put(fs("tmpfs", "mode", "755", 0), "etc");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int file = open(files[i], O_WRONLY | O_CREAT, 0644);
        TRY(write(file, "nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n", 50));
        close(file);
    }
    TRY(symlink("/proc/mounts", "etc/mtab"));
    snprintf(device, sizeof device, "/proc/self/fd/%d:/proc/self/fd/%d", open("etc", O_PATH), lower);
    put(fs("overlay", "lowerdir", device, 0), "etc");
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(chdir("/"));
    while (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0) capability++;
    TRY(setresgid(gid, gid, gid));
    TRY(setresuid(uid, uid, uid));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    execv(words[4], words + 4);
    return 127;
}
