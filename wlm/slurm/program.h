/* Running one of our programs: <udiRootPath>/libexec/shifter/shifter-wlm VERB ... . No shell, no PATH. */
#pragma once

#include "settings.h"

#define PROGRAM_ARGUMENTS 32

struct program {
	char *argv[PROGRAM_ARGUMENTS];	/* argv[0] is set by program_begin; NULL-terminated */
	int count;
};

/* Begins the command line `shifter-wlm VERB --config CONF`. */
void program_begin(struct program *program, const struct settings *settings, const char *verb);

/* Adds `name`, and `value` when it is not NULL. Both must live until program_run returns. */
void program_add(struct program *program, const char *name, const char *value);
void program_add_number(struct program *program, const char *name, unsigned long long number);

/* Runs it with the environment `envp` and returns its exit status (-1: it could not run, or a signal ended it, after slurm_error).
 * *output is its standard output, at most 1 MiB, to be freed; standard error and input are ours. */
int program_run(struct program *program, char **envp, char **output);

/* Starts it and does not wait; says by slurm_error when it cannot. Standard output goes to /dev/null. */
void program_start(struct program *program, char **envp);
