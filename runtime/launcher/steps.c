/* The table of verbs: how many fields each has, as whom and when it may run. Anything else ends the start. */
#include "shifter.h"

enum { BEFORE = 1, AFTER = 2, ROOTLESS = 4 }; /* giving up privilege; ROOTLESS: only where there never was any */
static bool dropped;

static void drop(char **f)
{
    (void)f;
    become_user();
    environment_start();
    dropped = true;
}

static void tell(char **f)
{
    say("%s", f[0]);
}

static void refuse(char **f)
{
    fail("%s", f[0]);
}

/* Fields end with NULL. Most and least are the same but for the verbs whose last field spreads. */
static const struct {
    const char *verb, *whom;
    int least, most, when;
    void (*run)(char **f);
} verbs[] = {
    {"image", "root", 4, 4, BEFORE, image_open},
    {"local", "user", 1, 1, BEFORE, mount_local},
    {"fuse", "user", 3, 3, BEFORE | ROOTLESS, rootless_fuse},
    {"sync", "root", 0, 0, BEFORE, planner_answer},
    {"begin", "root", 3, 3, BEFORE, root_begin},
    {"join", "root", 2, 2, BEFORE, root_join},
    {"tmpfs", "root", 4, 4, BEFORE, mount_tmpfs},
    {"mkdir", "root", 2, 2, BEFORE, file_mkdir},
    {"write", "root", 3, 3, BEFORE, file_write},
    {"copy", "root", 2, 2, BEFORE, file_copy},
    {"symlink", "root", 2, 2, BEFORE, file_symlink},
    {"bind", "root", 4, 4, BEFORE, mount_bind},
    {"bind", "user", 4, 4, BEFORE, mount_bind_of_user},
    {"overlay", "root", 1, 1, BEFORE, mount_overlay},
    {"proc", "root", 2, 2, BEFORE, mount_proc},
    {"remount", "root", 2, 2, BEFORE, mount_change},
    {"disk", "root", 4, 4, BEFORE, disk_make},
    {"roothook", "root", 1, 1, BEFORE, hook_root},
    {"pivot", "root", 0, 0, BEFORE, root_pivot},
    {"drop", "root", 0, 0, BEFORE, drop},
    {"envclear", "user", 0, FIELD_LIMIT, AFTER, environment_clear},
    {"envdefault", "user", 2, 2, AFTER, environment_default},
    {"envset", "user", 2, 2, AFTER, environment_set},
    {"envunset", "user", 1, 1, AFTER, environment_unset},
    {"envprepend", "user", 2, 2, AFTER, environment_prepend},
    {"envappend", "user", 2, 2, AFTER, environment_append},
    {"chdir", "user", 2, 2, AFTER, command_directory},
    {"userhook", "user", 1, 1, AFTER, hook_user},
    {"exec", "user", 1, FIELD_LIMIT, AFTER, command_run},
    {"say", "root", 1, 1, BEFORE | AFTER, tell},
    {"refuse", "root", 1, 1, BEFORE | AFTER, refuse},
};

void step_run(struct record *step)
{
    int fields = step->count - 2;
    for (size_t i = 0; fields >= 0 && i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(verbs[i].verb, step->field[0]) == 0 && strcmp(verbs[i].whom, step->field[1]) == 0 &&
            fields >= verbs[i].least && fields <= verbs[i].most && verbs[i].when & (dropped ? AFTER : BEFORE) &&
            (caller.rootless || !(verbs[i].when & ROOTLESS))) {
            verbs[i].run(step->field + 2);
            return;
        }
    fail("unknown or misplaced step %s: report this", step->count ? step->field[0] : "");
}
