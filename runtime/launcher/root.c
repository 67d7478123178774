/* The new root: a private mount namespace, paths resolved below the root only, and the way into it. */
#include "shifter.h"

bool root_on_host;
int root_fd = -1, image_fd = -1, mount_fd = -1;
static dev_t own[64]; /* devices of the file systems that this start made: the only ones it writes to */
static int own_count;

/* begin: propagation, udiMount, where: a namespace of our own, or the host's (setupRoot) */
void root_begin(char **f)
{
    bool ours = strcmp(f[2], "namespace") == 0;
    root_on_host = !ours;
    if (image_fd < 0)
        fail("misplaced step begin: report this");
    if (ours && unshare(CLONE_NEWNS) < 0)
        fail_errno("cannot make a mount namespace", "unshare");
    if (ours && mount(NULL, "/", NULL, MS_REC | (strcmp(f[0], "private") == 0 ? MS_PRIVATE : MS_SLAVE), NULL) < 0)
        fail_errno("cannot keep our mounts from the host", "/");
    mount_fd = host_directory(f[1]);
    if (mount_fd < 0)
        fail_errno("cannot use udiMount", f[1]);
    root_attach(image_fd, "/");
    if (!ours && mount(NULL, f[1], NULL, MS_PRIVATE, NULL) < 0)
        fail_errno("cannot keep our mounts from other namespaces", f[1]);
}

/* join: udiMount, and the device and inode that the prepared root has there */
void root_join(char **f)
{
    char found[64] = "";
    struct stat status;
    int root = host_directory(f[0]);
    if (root >= 0 && fstat(root, &status) == 0)
        snprintf(found, sizeof found, "%lx:%lx", (unsigned long)status.st_dev, (unsigned long)status.st_ino);
    if (strcmp(found, f[1]) != 0)
        fail("the prepared environment at %s is gone: start again", f[0]);
    if (fchdir(root) < 0 || chroot(".") < 0)
        fail_errno("cannot enter the prepared environment", f[0]);
}

static int open_how(int base, const char *path, int flags, unsigned long long resolve)
{
    struct open_how how = {.flags = (unsigned)flags | O_CLOEXEC, .resolve = resolve};
    return (int)syscall(SYS_openat2, base, path, &how, sizeof how);
}

int root_open(int base, const char *path, int flags)
{
    return open_how(base, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
}

int host_open(const char *path, int flags)
{
    return open_how(AT_FDCWD, path, flags, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
}

int host_directory(const char *path)
{
    return openat(AT_FDCWD, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int user_open(const char *path, int flags)
{
    as_user();
    int fd = open_how(AT_FDCWD, path, flags, RESOLVE_NO_MAGICLINKS);
    int error = errno;
    as_root();
    errno = error;
    return fd;
}

int root_parent(const char *path, const char **name)
{
    char parent[4096];
    const char *slash = strrchr(path, '/');
    if (!slash || !slash[1] || snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path) >= (int)sizeof parent)
        fail("cannot write in the container: %s: not a path", path);
    *name = slash + 1;
    int fd = root_open(root_fd, *parent ? parent : "/", O_PATH | O_DIRECTORY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0)
        fail_errno("cannot open a directory of the container", *parent ? parent : "/");
    for (int i = 0; i < own_count; i++)
        if (own[i] == status.st_dev)
            return fd;
    fail("cannot write in the container: %s: it is not the start's own file system", path);
}

void root_own(int tree)
{
    struct stat status;
    if (own_count == sizeof own / sizeof *own)
        fail("too many directories to underlay: mount fewer volumes in directories that the image lacks");
    if (fstat(tree, &status) < 0)
        fail_errno("cannot look at a new file system", "fstat");
    own[own_count++] = status.st_dev;
}

void root_attach(int tree, const char *target)
{
    bool whole = strcmp(target, "/") == 0;
    int place = whole ? mount_fd : root_open(root_fd, target, O_PATH);
    if (place < 0)
        fail_errno("cannot open a mount point of the container", target);
    if (move_mount(tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        fail_errno("cannot mount in the container", target);
    if (whole)
        root_fd = tree;
    else {
        close(tree);
        close(place);
    }
}

void root_pivot(char **f)
{
    (void)f;
    if (fchdir(root_fd) < 0)
        fail_errno("cannot enter the container", "fchdir");
    if (syscall(SYS_pivot_root, ".", ".") == 0) {
        if (umount2(".", MNT_DETACH) < 0)
            fail_errno("cannot let go of the host's file systems", "umount2");
    } else if (errno == EINVAL) { /* the host runs from its initial ramfs, which cannot be pivoted */
        if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
            fail_errno("cannot enter the container", "chroot");
    } else
        fail_errno("cannot enter the container", "pivot_root");
    if (chdir("/") < 0)
        fail_errno("cannot enter the container", "/");
}
