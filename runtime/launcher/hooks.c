/* The site's scripts: as root on the host while the container is made (as the user in it: user/command.c). */
#include "shifter.h"

void hook_wait(pid_t child, const char *kind, const char *script)
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
    hook_wait(child, "root hook", f[0]);
}
