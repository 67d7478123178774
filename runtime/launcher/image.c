/* The image as a mounted tree: read-only, nosuid, nodev, from a file that its user cannot have written. */
#include "shifter.h"

/* The device that memory remembers, if it is still attached to the same file: mounted again, it shares the superblock. */
static int loop_remembered(int file, int memory, char *name, size_t room)
{
    struct stat wanted;
    struct loop_info64 info;
    const unsigned flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    ssize_t size = pread(memory, name, room - 1, 0);
    if (size <= 0 || fstat(file, &wanted) < 0)
        return -1;
    name[size] = 0;
    int device = open(name, O_RDONLY | O_CLOEXEC);
    if (device >= 0 && ioctl(device, LOOP_GET_STATUS64, &info) == 0 && info.lo_inode == wanted.st_ino &&
        info.lo_device == wanted.st_dev && info.lo_offset == 0 && info.lo_sizelimit == 0 && (info.lo_flags & flags) == flags)
        return device;
    close(device);
    return -1;
}

/* A loop device on file that goes away with its last user; its path is written to name, and to memory (-1: no memory). */
static int loop_attach(int file, const char *path, bool read_only, int memory, char *name, size_t room)
{
    int found = memory >= 0 ? loop_remembered(file, memory, name, room) : -1;
    if (found >= 0)
        return found;
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        fail("cannot use loop devices: /dev/loop-control: %s: load the kernel's loop module", strerror(errno));
    struct loop_config config = {.fd = (unsigned)file};
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (read_only ? LO_FLAGS_READ_ONLY : 0);
    for (int tries = 0; tries < 10000; tries++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0) { /* the images that nobody uses make room; else others end some time */
            if (tries >= 300)
                fail("no loop device is free: %s: %s: raise the kernel's max_loop", path, strerror(errno));
            if (tries % 100 == 0)
                planner_in_background("holds", "make_room");
            if (caller.verbose)
                say("waiting for a loop device: %s", path);
            usleep(100000);
            continue;
        }
        snprintf(name, room, "/dev/loop%d", number);
        int device = open(name, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
        if (device >= 0 && ioctl(device, LOOP_CONFIGURE, &config) == 0) {
            close(control);
            if (memory >= 0 && (pwrite(memory, name, strlen(name), 0) < 0 || ftruncate(memory, (off_t)strlen(name)) < 0))
                fail_errno("cannot remember a loop device", path);
            return device;
        }
        if (errno != EBUSY && errno != ENOENT && errno != ENXIO && errno != EAGAIN)
            fail_errno("cannot attach a loop device", path);
        bool busy = errno == EBUSY;
        close(device);
        usleep(busy ? 100 : 1000); /* another start was faster, or udev has not made the node yet */
    }
    fail("no loop device could be had: %s: others take each one first: raise the kernel's max_loop", path);
}

static int mount_source(const char *format, char *source, const char *path, bool read_only)
{
    bool xfs = strcmp(format, "xfs") == 0;
    char *options[][2] = {
        {"source", source}, {read_only ? "ro" : "rw", NULL}, {"nouuid", xfs ? NULL : ""}, {"norecovery", xfs && read_only ? NULL : ""},
        {NULL, NULL},
    };
    return mount_new(format, options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (read_only ? MOUNT_ATTR_RDONLY : 0), path);
}

int image_mount_file(int file, const char *path, const char *format, bool read_only, int memory)
{
    char name[64];
    int tree = -1;
    if (strcmp(format, "erofs") == 0) { /* Linux 6.12: straight from the file */
        snprintf(name, sizeof name, "/proc/self/fd/%d", file);
        tree = mount_source(format, name, path, read_only);
    }
    if (tree < 0) {
        int loop = loop_attach(file, path, read_only, memory, name, sizeof name);
        tree = mount_source(format, name, path, read_only);
        if (tree < 0)
            fail("cannot mount image %s: %s: it is not a sound %s file: pull it again", path, strerror(errno), format);
        close(loop);
    }
    return tree;
}

/* image: path, format, holds, how: see hold.c. The planner resolved path: no link is followed here. */
void image_open(char **f)
{
    struct stat status;
    int file = host_open(f[0], O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (file < 0 || fstat(file, &status) < 0)
        fail_errno("cannot open image", f[0]);
    if (!S_ISREG(status.st_mode) || (status.st_uid == caller.uid && caller.uid != 0) || status.st_mode & 022)
        fail("image %s: not a regular file, or its user or others could write it: pull it again", f[0]);
    if (strcmp(f[1], "squashfs") != 0 && strcmp(f[1], "erofs") != 0 && strcmp(f[1], "xfs") != 0)
        fail("image %s: format %s is not known: squashfs, erofs, xfs are", f[0], f[1]);
    image_fd = hold_open(file, &status, f);
    close(file);
}
