/* System calls of Linux >= 5.12 by the kernel's own headers: which of them a C library knows differs, and <sys/mount.h> and
 * <linux/mount.h> cannot be had together everywhere. The changes of identity are the thread's, and there is one thread. */
#pragma once
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MNT_DETACH 2
int mount(const char *source, const char *target, const char *kind, unsigned long flags, const void *data);
int umount2(const char *target, int flags);

static inline int fsopen(const char *kind, unsigned flags)
{
    return (int)syscall(SYS_fsopen, kind, flags);
}

static inline int fsconfig(int context, unsigned command, const char *key, const void *value, int extra)
{
    return (int)syscall(SYS_fsconfig, context, command, key, value, extra);
}

static inline int fsmount(int context, unsigned flags, unsigned attributes)
{
    return (int)syscall(SYS_fsmount, context, flags, attributes);
}

static inline int open_tree(int base, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, base, path, flags);
}

static inline int move_mount(int from, const char *path, int to, const char *target, unsigned flags)
{
    return (int)syscall(SYS_move_mount, from, path, to, target, flags);
}

static inline int mount_setattr(int base, const char *path, unsigned flags, struct mount_attr *attributes)
{
    return (int)syscall(SYS_mount_setattr, base, path, flags, attributes, sizeof *attributes);
}

static inline int statx_of(int base, const char *path, unsigned flags, unsigned mask, struct statx *status)
{
    return (int)syscall(SYS_statx, base, path, flags, mask, status);
}

static inline int close_descriptors(unsigned first, unsigned last, int flags)
{
    return (int)syscall(SYS_close_range, first, last, flags);
}

static inline int set_uids(uid_t real, uid_t effective, uid_t saved)
{
    return (int)syscall(SYS_setresuid, real, effective, saved);
}

static inline int set_gids(gid_t real, gid_t effective, gid_t saved)
{
    return (int)syscall(SYS_setresgid, real, effective, saved);
}
