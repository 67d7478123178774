/* Files of the container that a start makes, in the file systems that it made itself (root_parent sees to that). */
#include "shifter.h"

static mode_t octal(const char *text)
{
    return (mode_t)(strtoul(text, NULL, 8) & 01777);
}

/* mkdir: target, mode */
void file_mkdir(char **f)
{
    const char *name;
    int parent = root_parent(f[0], &name);
    mode_t mode = octal(f[1]);
    if (mkdirat(parent, name, mode) == 0) {
        if (mode & 01022 && fchmodat(parent, name, mode, 0) < 0)
            fail_errno("cannot make a directory of the container", f[0]);
    } else if (errno != EEXIST)
        fail_errno("cannot make a directory of the container", f[0]);
    close(parent);
}

static int create(const char *target, mode_t mode)
{
    const char *name;
    int parent = root_parent(target, &name);
    int file = openat(parent, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
    if (file < 0)
        fail_errno("cannot make a file of the container", target);
    close(parent);
    return file;
}

/* write: target, mode, text */
void file_write(char **f)
{
    int file = create(f[0], octal(f[1]));
    if (dprintf(file, "%s", f[2]) < 0)
        fail_errno("cannot write a file of the container", f[0]);
    close(file);
}

/* copy: source, target */
void file_copy(char **f)
{
    struct stat status;
    int source = open(f[0], O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (source < 0 || fstat(source, &status) < 0)
        fail_errno("cannot copy into the container", f[0]);
    if (!S_ISREG(status.st_mode))
        fail("cannot copy into the container: %s: not a regular file", f[0]);
    int file = create(f[1], status.st_mode & 0755);
    ssize_t done;
    while ((done = sendfile(file, source, NULL, 1 << 30)) > 0)
        ;
    if (done < 0 || (!caller.rootless && fchown(file, status.st_uid, status.st_gid) < 0))
        fail_errno("cannot copy into the container", f[0]);
    close(source);
    close(file);
}

/* symlink: target, value */
void file_symlink(char **f)
{
    const char *name;
    int parent = root_parent(f[0], &name);
    if (symlinkat(f[1], parent, name) < 0)
        fail_errno("cannot make a link of the container", f[0]);
    close(parent);
}
