/* Mounts by the kernel's file-descriptor interface: mount_setattr(2), open_tree, fsopen; no path is looked up twice. */
#include "shifter.h"

static int covered_fd = -1; /* the directory that the last tmpfs covered, and where: what an overlay shows beneath it */
static char covered[4096];

/* A detached mount of a new superblock, or -1 when the kernel refuses to make it. An option is a name and its value: NULL for a
 * flag, "" for one that is left out. */
int mount_new(const char *kind, char *options[][2], unsigned attributes, const char *target)
{
    int context = fsopen(kind, FSOPEN_CLOEXEC);
    if (context < 0)
        fail("cannot mount %s: this kernel gives no %s: %s: load its module where it has none", target, kind, strerror(errno));
    for (int i = 0; options[i][0]; i++) {
        const char *value = options[i][1];
        if ((!value || *value) &&
            fsconfig(context, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[i][0], value, 0) < 0)
            fail_errno("cannot configure a file system", target);
    }
    int tree = fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0 ? -1 : fsmount(context, FSMOUNT_CLOEXEC, attributes);
    int error = errno;
    close(context);
    errno = error;
    return tree;
}

static int new_filesystem(const char *kind, char *options[][2], unsigned attributes, const char *target)
{
    int tree = mount_new(kind, options, attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, target);
    if (tree < 0)
        fail_errno("cannot make a file system", target);
    return tree;
}

/* tmpfs: target, mode, kind, size */
void mount_tmpfs(char **f)
{
    bool ramfs = strcmp(f[2], "ramfs") == 0;
    char *options[][2] = {{"mode", f[1]}, {"size", ramfs ? "" : f[3]}, {NULL, NULL}};
    int tree = new_filesystem(ramfs ? "ramfs" : "tmpfs", options, 0, f[0]);
    root_own(tree);
    if (strcmp(f[0], "/") != 0) {
        close(covered_fd);
        if ((covered_fd = root_open(root_fd, f[0], O_PATH | O_DIRECTORY)) < 0)
            fail_errno("cannot open a mount point of the container", f[0]);
        snprintf(covered, sizeof covered, "%s", f[0]);
    }
    root_attach(tree, f[0]);
}

static struct mount_attr attributes(const char *flags, bool *recursive)
{
    struct mount_attr attr = {0};
    static const struct {
        const char *word;
        unsigned set, propagation;
    } words[] = {
        {"ro", MOUNT_ATTR_RDONLY, 0},     {"nodev", MOUNT_ATTR_NODEV, 0}, {"noexec", MOUNT_ATTR_NOEXEC, 0},
        {"slave", 0, MS_SLAVE},           {"private", 0, MS_PRIVATE},     {"shared", 0, MS_SHARED},
        {"rec", 0, 0},
    };
    for (const char *at = flags; *at;) {
        size_t size = strcspn(at, ","), i = 0;
        while (i < sizeof words / sizeof *words && (strlen(words[i].word) != size || strncmp(words[i].word, at, size) != 0))
            i++;
        if (i == sizeof words / sizeof *words)
            fail("unknown mount flag in %s: report this", flags);
        attr.attr_set |= words[i].set;
        attr.propagation |= words[i].propagation;
        *recursive |= strcmp(words[i].word, "rec") == 0;
        at += size + (at[size] == ',');
    }
    return attr;
}

static void change(int tree, const char *target, struct mount_attr *attr, bool recursive)
{
    if (mount_setattr(tree, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), attr) < 0)
        fail_errno("cannot restrict a mount of the container", target);
}

static int clone_tree(int source, const char *name, const char *target, struct mount_attr *attr, bool recursive)
{
    int tree = open_tree(source, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0));
    if (tree < 0)
        fail("cannot mount %s at %s: %s", name, target, strerror(errno));
    attr->attr_set |= MOUNT_ATTR_NOSUID;
    if (root_on_host && attr->propagation != MS_PRIVATE)
        attr->propagation = MS_SLAVE;
    change(tree, target, attr, recursive);
    return tree;
}

/* A path of the host with the caller's rights; readable by the caller, or the start ends. Descriptor only: no second look. */
static int user_source(const char *path, const char *target, int flags)
{
    int source = user_open(path, O_PATH | flags);
    struct stat status;
    if (source < 0 || fstat(source, &status) < 0)
        fail("cannot mount %s at %s: %s", path, target, strerror(errno));
    int wanted = S_ISDIR(status.st_mode) ? R_OK | X_OK : R_OK;
    if (syscall(SYS_faccessat2, source, "", wanted, AT_EMPTY_PATH) < 0)
        fail("cannot mount %s at %s: you may not read it: %s", path, target, strerror(errno));
    return source;
}

/* bind: origin, source, target, flags */
static void bind_source(int source, char **f)
{
    bool recursive = false;
    struct mount_attr attr = attributes(f[3], &recursive);
    if (source < 0)
        fail("cannot mount %s at %s: %s", f[1], f[2], strerror(errno));
    int tree = clone_tree(source, f[1], f[2], &attr, recursive);
    close(source);
    root_attach(tree, f[2]);
}

void mount_bind(char **f)
{
    int base = strcmp(f[0], "image") == 0 ? image_fd : root_fd;
    bind_source(strcmp(f[0], "host") == 0 ? open(f[1], O_PATH | O_CLOEXEC) : root_open(base, f[1], O_PATH), f);
}

void mount_bind_of_user(char **f)
{
    bind_source(user_source(f[1], f[2], 0), f);
}

/* local: path; the caller's directory becomes the image */
void mount_local(char **f)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NODEV};
    int source = user_source(f[0], "/", O_DIRECTORY);
    image_fd = clone_tree(source, f[0], "/", &attr, true);
    close(source);
}

/* overlay: target; what the tmpfs there holds, over what it covers */
void mount_overlay(char **f)
{
    char layers[128];
    int upper = root_open(root_fd, f[0], O_PATH | O_DIRECTORY);
    if (upper < 0 || covered_fd < 0 || strcmp(covered, f[0]) != 0)
        fail("cannot overlay %s: %s, or nothing is covered there: report this", f[0], strerror(errno));
    snprintf(layers, sizeof layers, "/proc/self/fd/%d:/proc/self/fd/%d", upper, covered_fd);
    char *options[][2] = {{"lowerdir", layers}, {"redirect_dir", "nofollow"}, {"metacopy", "off"}, {NULL, NULL}};
    int tree = new_filesystem("overlay", options, MOUNT_ATTR_RDONLY, f[0]);
    close(upper);
    root_attach(tree, f[0]);
}

/* proc: target, options (hidepid=N,gid=N,subset=...) */
void mount_proc(char **f)
{
    char text[256], *options[9][2] = {{NULL, NULL}}, *rest = text;
    int count = 0;
    if (snprintf(text, sizeof text, "%s", f[1]) >= (int)sizeof text)
        fail("cannot mount proc: too many options: %s", f[1]);
    for (char *word; count < 8 && (word = strsep(&rest, ","));) {
        char *value = strchr(word, '=');
        if (!value)
            continue;
        *value = 0;
        options[count][0] = word;
        options[count][1] = value + 1;
        options[++count][0] = NULL;
    }
    root_attach(new_filesystem("proc", options, MOUNT_ATTR_NOEXEC, f[0]), f[0]);
}

/* remount: target, flags */
void mount_change(char **f)
{
    bool recursive = false;
    struct mount_attr attr = attributes(f[1], &recursive);
    int place = root_open(root_fd, f[0], O_PATH);
    if (place < 0)
        fail_errno("cannot restrict a mount of the container", f[0]);
    change(place, f[0], &attr, recursive);
    close(place);
}
