/* What never runs with privilege: the user's own end of a start, after `drop`, and a start in a user namespace. */
#pragma once

/* rootless.c: without privilege, or after giving it up for good */
void rootless_enter(void);
void rootless_fuse(char **f);

/* command.c, environment.c: one function a step; fields as in plan.py */
void command_directory(char **f);
void command_run(char **f);
void hook_user(char **f);
void environment_start(void);
void environment_clear(char **f);
void environment_default(char **f);
void environment_set(char **f);
void environment_unset(char **f);
void environment_prepend(char **f);
void environment_append(char **f);
const char *environment_value(const char *name);
char **environment_done(void);
