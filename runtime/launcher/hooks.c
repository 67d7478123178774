/* The site's scripts: as root on the host while the container is made, as the user in it before the command. */
#include "shifter.h"

static void wait_for(pid_t child, const char *kind, const char *script)
{
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0)
        fail_errno("cannot run a hook", script);
    if (WIFSIGNALED(status))
        fail("%s %s: ended by signal %d: the container is not started", kind, script, WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        fail("%s %s: exit status %d: the container is not started", kind, script, WEXITSTATUS(status));
}

/* roothook: script */
void hook_root(char **f)
{
    pid_t child = fork();
    if (child == 0) {
        char *command[] = {"/bin/sh", f[0], NULL};
        if (fchdir(root_fd) < 0)
            fail_errno("cannot enter the container's root", f[0]);
        run_as_root(command);
    }
    wait_for(child, "root hook", f[0]);
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
    wait_for(child, "user hook", f[0]);
}
