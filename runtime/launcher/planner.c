/* The planner: Python from a root-owned path, in our mount namespace, with three capabilities and no environment. */
#include "shifter.h"

static int talk = -1;
static pid_t child = -1;

/* Keep what reading images and acting as the caller takes; see docs/security.md. */
static void keep_few_capabilities(void)
{
    static const unsigned kept[] = {CAP_DAC_READ_SEARCH, CAP_SETUID, CAP_SETGID};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct few[2] = {{0}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        few[0].permitted |= 1u << kept[i];
    few[0].effective = few[0].inheritable = few[0].permitted;
    /* exec as root would give everything back, unless root is nobody special */
    if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0) < 0 || syscall(SYS_capset, &header, few) < 0)
        fail_errno("cannot limit the planner", "capset");
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept[i], 0, 0) < 0)
            fail_errno("cannot limit the planner", "prctl");
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static _Noreturn void exec_python(const char *module, const char *function, bool as_caller)
{
    char code[4096];
    if (snprintf(code, sizeof code, "import sys;sys.path.insert(0,'%s');from runtime.%s import %s;%s(sys.argv[1])",
                 libexec_path, module, function, function) >= (int)sizeof code)
        fail("the installation's paths are too long: install below a shorter prefix");
    char *words[] = {(char *)python_path, "-ISB", "-c", code, (char *)config_path, NULL};
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", NULL};
    execve(python_path, words, as_caller ? caller.environment : environment);
    fail_errno("cannot start Python", python_path);
}

void planner_request(struct record *request)
{
    size_t groups = (size_t)caller.group_count;
    char(*text)[12] = grow(NULL, (groups + 2) * sizeof *text);
    const char **who = grow(NULL, (groups + 4) * sizeof *who);
    who[0] = "user";
    for (size_t i = 0; i < groups + 2; i++) {
        snprintf(text[i], sizeof *text, "%u", i == 0 ? caller.uid : i == 1 ? caller.gid : caller.groups[i - 2]);
        who[i + 1] = text[i];
    }
    who[groups + 3] = NULL;
    record_add(request, who);
    for (char **e = caller.environment; *e; e++)
        if (strncmp(*e, "SHIFTER", 7) == 0 || strncmp(*e, "SLURM_SPANK_SHIFTER", 19) == 0 ||
            strncmp(*e, "MUNGE_SOCKET=", 13) == 0)
            record_add(request, (const char *const[]){"environment", *e, NULL});
    record_add(request, (const char *const[]){"rights", caller.rootless ? "caller" : "root", NULL});
    record_add(request, (const char *const[]){"end", caller.arguments[0] ? "arguments" : "", NULL});
}

void planner_start(const struct record *request)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        fail_errno("cannot talk to the planner", "socketpair");
    child = fork();
    if (child < 0)
        fail_errno("cannot start the planner", "fork");
    if (child == 0) {
        int null = open("/dev/null", O_RDONLY);
        if (null < 0 || dup2(null, 0) < 0 || dup2(pair[1], 3) < 0)
            fail_errno("cannot start the planner", "dup2");
        if (pair[1] == 3)
            fcntl(3, F_SETFD, 0);
        close_descriptors(4, ~0u, 0);
        if ((!caller.rootless && (set_gids(0, 0, 0) < 0 || set_uids(0, 0, 0) < 0)) ||
            prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
            fail_errno("cannot start the planner", "setresuid");
        if (!caller.rootless)
            keep_few_capabilities();
        exec_python("planner", "main", false);
    }
    close(pair[1]);
    talk = pair[0];
    struct record name = {0};
    record_add(&name, (const char *const[]){"cache", cache_name, NULL});
    send_all(talk, name.data, name.size);
    send_all(talk, request->data, request->size);
}

void planner_attach(int socket)
{
    talk = socket;
}

/* Python as root, on its own: nobody waits for it, and it holds nothing of the caller's. */
void planner_in_background(const char *module, const char *function)
{
    pid_t first = fork();
    if (first > 0)
        waitpid(first, NULL, 0);
    if (first != 0)
        return;
    int null = open("/dev/null", O_RDWR);
    if (fork() != 0)
        _exit(0);
    setsid();
    close_descriptors(3, ~0u, CLOSE_RANGE_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 || set_gids(0, 0, 0) < 0 ||
        setgroups(0, NULL) < 0 || set_uids(0, 0, 0) < 0 || chdir("/") < 0)
        _exit(1);
    exec_python(module, function, false);
}

bool planner_next(struct record *step)
{
    if (record_receive(step, talk))
        return true;
    int status = 0;
    if (child > 0 && waitpid(child, &status, 0) < 0)
        fail_errno("cannot wait for the planner", "waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("the planner ended with status %d: see its message above", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return false;
}

/* Everything so far is done; the image goes along, for the planner to look at. */
void planner_answer(char **f)
{
    (void)f;
    char text[] = "\5\0\0\0done", control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec data = {.iov_base = text, .iov_len = sizeof text};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &image_fd, sizeof(int));
    if (sendmsg(talk, &message, MSG_NOSIGNAL) < 0)
        fail_errno("the planner does not listen", "sendmsg");
}

void planner_end(void)
{
    if (child > 0) {
        close(talk);
        waitpid(child, NULL, 0);
        child = -1;
    }
}

void planner_help(const char *module, const char *function)
{
    exec_python(module, function, true);
}
