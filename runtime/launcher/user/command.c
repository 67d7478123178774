/* The end of a start, as the user for good: working directory, user hooks, the command. */
#include "../shifter.h"

/* chdir: path ("" is the caller's), what otherwise */
void command_directory(char **f)
{
    const char *path = *f[0] ? f[0] : caller.directory;
    if (*path && chdir(path) == 0)
        return;
    if (strcmp(f[1], "required") == 0)
        fail_errno("cannot enter the working directory in the container", path);
    if (chdir("/") < 0)
        fail_errno("cannot enter", "/");
    say("warning: %s: not in the container, or not yours to enter: the command starts in /", *path ? path : "working directory");
}

/* Execute a file; what is no program is a script of the shell's, as execvp in most C libraries has it. */
static void execute(char *file, char **command, size_t words)
{
    execve(file, command, environ);
    if (errno != ENOEXEC)
        return;
    char **script = grow(NULL, (words + 2) * sizeof *script);
    script[0] = "/bin/sh";
    script[1] = file;
    memcpy(script + 2, command + 1, words * sizeof *script);
    execve(script[0], script, environ);
    errno = ENOEXEC;
}

/* The same by the container's PATH, for a name without a slash. */
static void execute_by_name(char **command, size_t words)
{
    char file[4096];
    const char *path = environment_value("PATH");
    int refused = ENOENT;
    for (const char *at = *path ? path : "/bin:/usr/bin"; at; at = strchr(at, ':') ? strchr(at, ':') + 1 : NULL) {
        int size = (int)strcspn(at, ":");
        if (snprintf(file, sizeof file, "%.*s%s%s", size, at, size ? "/" : "", command[0]) >= (int)sizeof file)
            continue;
        execute(file, command, words);
        if (errno == EACCES)
            refused = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR)
            return;
    }
    errno = refused;
}

/* exec: append or none, then the command's first words */
void command_run(char **f)
{
    size_t extra = 0, words = 0;
    while (f[1 + words])
        words++;
    if (strcmp(f[0], "append") == 0)
        while (caller.arguments[extra])
            extra++;
    char **command = grow(NULL, (words + extra + 1) * sizeof *command);
    memcpy(command, f + 1, words * sizeof *command);
    memcpy(command + words, caller.arguments, extra * sizeof *command);
    command[words + extra] = NULL;
    if (!command[0] || !*command[0])
        fail("no command to run: name one after the options");
    planner_end();
    environ = environment_done();
    if (caller.mask != START_MASK)
        umask(caller.mask);
    caller_signals(false);
    if (strchr(command[0], '/'))
        execute(command[0], command, words + extra);
    else
        execute_by_name(command, words + extra);
    say("cannot run %s: %s: is it in the image, and in the container's PATH?", command[0], strerror(errno));
    _exit(127);
}

/* userhook: script */
void hook_user(char **f)
{
    pid_t child = fork();
    if (child == 0) {
        char *command[] = {"/bin/sh", f[0], NULL};
        execve(command[0], command, environment_done());
        fail_errno("cannot run in the container", command[0]);
    }
    hook_wait(child, "user hook", f[0]);
}
