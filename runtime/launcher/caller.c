/* Who started us, and how we act as them, as root, or become them for good: credentials(7), capabilities(7). */
#include "shifter.h"

struct caller caller;
static void (*child_handler)(int), (*size_handler)(int);

/* A set-up waits for its children, and names a limit that it meets instead of dying of it; the command gets its own back. */
void caller_signals(bool ours)
{
    if (ours) {
        child_handler = signal(SIGCHLD, SIG_DFL);
        size_handler = signal(SIGXFSZ, SIG_IGN);
    } else {
        signal(SIGCHLD, child_handler);
        signal(SIGXFSZ, size_handler);
    }
}

/* PMI_FD names a socket to the process manager of an MPI job; it alone of the inherited descriptors is kept. */
static int kept_descriptor(void)
{
    for (char **e = caller.environment; *e; e++)
        if (strncmp(*e, "PMI_FD=", 7) == 0) {
            char *end;
            long fd = strtol(*e + 7, &end, 10);
            struct stat status;
            if (end != *e + 7 && !*end && fd > 2 && fd < 4096 && fstat((int)fd, &status) == 0 && S_ISSOCK(status.st_mode))
                return (int)fd;
        }
    return 2;
}

void caller_take(char **environment)
{
    static gid_t groups[65536]; /* the kernel's NGROUPS_MAX */
    uid_t effective, saved;
    gid_t group, saved_group;
    caller.environment = environment;
    if (getresuid(&caller.uid, &effective, &saved) < 0 || getresgid(&caller.gid, &group, &saved_group) < 0)
        fail_errno("cannot tell who is calling", "getresuid");
    prctl(PR_SET_DUMPABLE, 0);
    int kept = kept_descriptor();
    if ((kept > 3 && close_descriptors(3, (unsigned)kept - 1, 0) < 0) || close_descriptors((unsigned)kept + 1, ~0u, 0) < 0)
        fail_errno("cannot close inherited descriptors", "close_range");
    caller.mask = umask(START_MASK);
    caller.groups = groups;
    caller.group_count = getgroups(sizeof groups / sizeof *groups, groups);
    if (caller.group_count < 0)
        fail_errno("cannot read the caller's groups", "getgroups");
    char *directory = get_current_dir_name();
    caller.directory = directory && *directory == '/' ? directory : "";
    caller.privileged = effective == 0;
    if (caller.privileged && set_gids((gid_t)-1, 0, (gid_t)-1) < 0)
        fail_errno("cannot take root's group", "setresgid");
}

/* While others wait for a lock of ours, the caller cannot stop us: no signal but the kernel's own reaches us. */
void caller_unstoppable(bool on)
{
    static sigset_t callers;
    sigset_t all;
    sigfillset(&all);
    if (sigprocmask(on ? SIG_BLOCK : SIG_SETMASK, on ? &all : &callers, on ? &callers : NULL) < 0 ||
        set_uids(on ? 0 : caller.uid, 0, 0) < 0)
        fail_errno("cannot hold an image", "setresuid");
}

static void act_as(uid_t uid, gid_t gid)
{
    if (caller.rootless)
        return;
    setfsgid(gid);
    setfsuid(uid); /* neither says whether it failed: asked again, they say what is in force */
    if (setfsuid((uid_t)-1) != (int)uid || setfsgid((gid_t)-1) != (int)gid)
        fail("cannot act as uid %u: setfsuid: install shifter setuid root", uid);
}

void as_user(void)
{
    act_as(caller.uid, caller.gid);
}

void as_root(void)
{
    act_as(0, 0);
}

void become_user(void)
{
    for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
        ;
    if (errno != EINVAL)
        fail_errno("cannot empty the capability bounding set", "prctl");
    if (set_gids(caller.gid, caller.gid, caller.gid) < 0 || set_uids(caller.uid, caller.uid, caller.uid) < 0)
        fail_errno("cannot become the caller", "setresuid");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    if (syscall(SYS_capset, &header, none) < 0) /* and with the permitted go the ambient ones */
        fail_errno("cannot drop capabilities", "capset");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fail_errno("cannot set no_new_privs", "prctl");
    if (caller.uid != 0 && (set_uids(0, 0, 0) == 0 || setfsuid((uid_t)-1) == 0))
        fail("privilege is not gone: setuid(0) succeeded: report this");
}

void run_as_root(char *const command[])
{
    static char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin", language[] = "LC_ALL=C";
    char *environment[] = {path, language, NULL};
    if (set_gids(0, 0, 0) < 0 || set_uids(0, 0, 0) < 0)
        fail_errno("cannot become root", command[0]);
    execve(command[0], command, environment);
    fail_errno("cannot run", command[0]);
}
