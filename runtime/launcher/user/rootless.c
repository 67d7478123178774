/* Without privilege: the same steps in a user namespace of the caller's own, user_namespaces(7). No code here runs setuid. */
#include "../shifter.h"

static void write_to(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0)
        fail_errno("cannot set up a user namespace", path);
    close(file);
}

void rootless_enter(void)
{
    char map[64];
    prctl(PR_SET_DUMPABLE, 1); /* else the maps below would be root's */
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
        fail("no privilege, and no user namespace either: %s: have shifter installed setuid root (mode 4755), or user"
             " namespaces allowed (user.max_user_namespaces)", strerror(errno));
    write_to("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "%u %u 1", caller.uid, caller.uid);
    write_to("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "%u %u 1", caller.gid, caller.gid);
    write_to("/proc/self/gid_map", map);
}

/* In a child: keep the right to mount over exec, so that no setuid helper is needed. */
static void keep_mounting(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct all[2];
    if (syscall(SYS_capget, &header, all) < 0)
        _exit(1);
    all[0].inheritable |= 1u << CAP_SYS_ADMIN;
    if (syscall(SYS_capset, &header, all) < 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0) < 0)
        _exit(1);
}

/* fuse: program, image file, a directory to work in. The program lives as long as the command. */
void rootless_fuse(char **f)
{
    char place[4096];
    struct statx status;
    if (snprintf(place, sizeof place, "%s/image", f[2]) >= (int)sizeof place)
        fail("too long a path: %s", f[2]);
    if (mount("none", f[2], "tmpfs", MS_NOSUID | MS_NODEV, "mode=755") < 0 || mkdir(place, 0755) < 0)
        fail_errno("cannot make a place for the image", f[2]);
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        char *command[] = {f[0], "-f", f[1], place, NULL};
        int null = open("/dev/null", O_RDWR);
        if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent || null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 ||
            dup2(null, 2) < 0)
            _exit(1);
        keep_mounting();
        execve(f[0], command, command + 4);
        _exit(1);
    }
    for (int tries = 0; child > 0 && tries < 10000 && waitpid(child, NULL, WNOHANG) == 0; tries++, usleep(500)) {
        if (statx_of(AT_FDCWD, place, 0, STATX_TYPE, &status) < 0 || !(status.stx_attributes & STATX_ATTR_MOUNT_ROOT))
            continue;
        image_fd = open_tree(AT_FDCWD, place, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (image_fd < 0)
            fail_errno("cannot use the image", place);
        return;
    }
    fail("cannot mount image %s: %s ended: is it a sound image, and yours to read?", f[1], f[0]);
}
