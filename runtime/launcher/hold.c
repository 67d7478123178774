/* Holds: an image mounted once a node, in a directory that only root may enter; every instance is a bind of it.
 *
 * Where a site keeps none ("share" instead of "keep"), starts still share the loop device of any instance that lives.
 * A hold comes into being with one move_mount, so a death at any moment leaves a whole one or none; its lock only keeps a
 * second start from doing the same work. The lock file's time says when it was used last (runtime/holds.py drops it). */
#include "shifter.h"

/* An own bind of the hold, or -1 where nothing is mounted. */
static int held(int holds, const char *name)
{
    struct statx status;
    int place = openat(holds, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (place < 0)
        return -1;
    int tree = -1;
    if (statx_of(place, "", AT_EMPTY_PATH, STATX_TYPE, &status) == 0 && status.stx_attributes & STATX_ATTR_MOUNT_ROOT)
        tree = open_tree(place, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    close(place);
    return tree;
}

static void make(int holds, const char *name, int tree, char **f)
{
    if (mkdirat(holds, name, 0700) < 0 && errno != EEXIST)
        fail_errno("cannot hold an image", f[2]);
    if (move_mount(tree, "", holds, name, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        fail_errno("cannot hold an image", f[2]);
    struct stat status;
    if (fstat(holds, &status) == 0 && status.st_nlink > 3)
        planner_in_background("holds", "main"); /* there are others: a new one is the time to look for old ones */
}

int hold_open(int file, const struct stat *status, char **f)
{
    char name[128], lock_name[140];
    struct stat directory;
    int holds = host_directory(f[2]);
    if (holds < 0 || fstat(holds, &directory) < 0)
        fail_errno("cannot hold an image", f[2]);
    if (directory.st_uid != 0 || directory.st_mode & 077)
        fail("cannot hold an image: %s: must be root's alone: chown root and chmod 700 it", f[2]);
    snprintf(name, sizeof name, "%lx-%lx-%lx.%lx", (unsigned long)status->st_dev, (unsigned long)status->st_ino,
             (unsigned long)status->st_mtim.tv_sec, (unsigned long)status->st_mtim.tv_nsec);
    snprintf(lock_name, sizeof lock_name, "%s.lock", name);
    bool keep = strcmp(f[3], "keep") == 0;
    for (int tries = 0; tries < 10; tries++) {
        int tree = keep ? held(holds, name) : -1;
        if (tree >= 0) {
            utimensat(holds, lock_name, NULL, AT_SYMLINK_NOFOLLOW);
            close(holds);
            return tree;
        }
        caller_unstoppable(true);
        int lock = openat(holds, lock_name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (lock < 0 || flock(lock, LOCK_EX) < 0 || fstat(lock, &directory) < 0)
            fail_errno("cannot hold an image", f[2]);
        if (directory.st_nlink == 0) { /* the hold was dropped, and its lock with it, while we waited */
            close(lock);
            caller_unstoppable(false);
            continue;
        }
        tree = keep ? held(holds, name) : -1;
        bool made = tree < 0;
        if (made)
            tree = image_mount_file(file, f[0], f[1], true, lock);
        if (made && keep)
            make(holds, name, tree, f);
        close(lock);
        caller_unstoppable(false);
        if (!keep)
            return tree;
        close(tree);
    }
    fail("cannot hold an image: %s: it is unmounted as soon as it is mounted", f[0]);
}
