/* perNodeCache: a writable file system of the start's own, in a sparse file that has no name and so cannot outlive it. */
#include "shifter.h"

static int nameless(const char *directory)
{
    char path[4096];
    int file = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
        return file;
    snprintf(path, sizeof path, "%s/shifter-XXXXXX", directory); /* a file system without O_TMPFILE */
    file = mkostemp(path, O_CLOEXEC);
    if (file >= 0 && unlink(path) < 0)
        return -1;
    return file;
}

/* disk: directory, size in bytes, mkfs.xfs, target */
void disk_make(char **f)
{
    char path[64];
    int file = nameless(f[0]), status = 0;
    if (file < 0 || ftruncate(file, (off_t)strtoll(f[1], NULL, 10)) < 0)
        fail_errno("cannot make a perNodeCache file", f[0]);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    pid_t child = fork();
    if (child == 0) {
        char *command[] = {f[2], "-q", "-f", path, NULL};
        int null = open("/dev/null", O_WRONLY);
        if (fcntl(file, F_SETFD, 0) < 0 || dup2(null, STDOUT_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0)
            _exit(1);
        run_as_root(command);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
        fail("cannot make a perNodeCache file system: %s: it ended with status %d: is %s bytes enough?", f[2],
             WEXITSTATUS(status), f[1]);
    int tree = image_mount_file(file, f[0], "xfs", false, -1);
    if (fchownat(tree, "", caller.uid, caller.gid, AT_EMPTY_PATH) < 0 || fchmodat(tree, ".", 0700, 0) < 0)
        fail_errno("cannot give a perNodeCache to its user", f[3]);
    close(file);
    root_attach(tree, f[3]);
}
