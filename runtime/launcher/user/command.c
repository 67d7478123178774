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
    execvp(command[0], command);
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
