/* fork, exec, read, wait: how the plugin calls the programs that hold the policy. See program.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

#include "program.h"

#define OUTPUT_LIMIT (1 << 20)

void program_begin(struct program *program, const struct settings *settings, const char *verb)
{
	program->count = 0;
	if (asprintf(&program->argv[0], "%s/libexec/shifter/shifter-wlm", settings->root) < 0)
		abort();
	program->count = 1;
	program_add(program, verb, NULL);
	program_add(program, "--config", settings->config);
}

void program_add(struct program *program, const char *name, const char *value)
{
	if (program->count + 3 > PROGRAM_ARGUMENTS)
		abort();	/* a fixed number of calls in this plugin: cannot happen */
	program->argv[program->count++] = (char *)name;
	if (value)
		program->argv[program->count++] = (char *)value;
	program->argv[program->count] = NULL;
}

void program_add_number(struct program *program, const char *name, unsigned long long number)
{
	char *text;
	if (asprintf(&text, "%llu", number) < 0)
		abort();
	program_add(program, name, text);
}

/* In the child: the caller's signal mask and handlers must not reach the program. */
static void become(struct program *program, char **envp, int output)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	if (dup2(output, STDOUT_FILENO) >= 0)
		execve(program->argv[0], program->argv, envp);
	dprintf(STDERR_FILENO, "shifter: %s: %s: is udiRootPath right in udiRoot.conf?\n", program->argv[0], strerror(errno));
	_exit(127);
}

/* All that can be read from `input`, as text; NULL without memory. What is beyond the limit is read and dropped. */
static char *read_all(int input)
{
	char *text = calloc(1, OUTPUT_LIMIT + 1), rest[4096];
	size_t length = 0;
	ssize_t n = 1;
	while (text && n) {
		n = length < OUTPUT_LIMIT ? read(input, text + length, OUTPUT_LIMIT - length) : read(input, rest, sizeof rest);
		if (n < 0 && errno != EINTR)
			break;
		if (n > 0 && length < OUTPUT_LIMIT)
			length += (size_t)n;
	}
	return text;
}

int program_run(struct program *program, char **envp, char **output)
{
	int ends[2], status = 0;
	*output = NULL;
	if (pipe2(ends, O_CLOEXEC)) {
		slurm_error("shifter: pipe: %s", strerror(errno));
		return -1;
	}
	pid_t child = fork();
	if (child == 0)
		become(program, envp, ends[1]);
	close(ends[1]);
	if (child < 0) {
		slurm_error("shifter: fork: %s", strerror(errno));
		close(ends[0]);
		return -1;
	}
	*output = read_all(ends[0]);
	close(ends[0]);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR) {
			slurm_error("shifter: %s: waitpid: %s", program->argv[1], strerror(errno));
			return -1;
		}
	if (!WIFEXITED(status) || !*output) {
		slurm_error("shifter: %s %s was ended by signal %d", program->argv[0], program->argv[1], WTERMSIG(status));
		return -1;
	}
	return WEXITSTATUS(status);
}

void program_start(struct program *program, char **envp)
{
	pid_t child = fork();
	if (child == 0)
		become(program, envp, open("/dev/null", O_WRONLY | O_CLOEXEC));
	if (child < 0)
		slurm_error("shifter: fork: %s", strerror(errno));
}
