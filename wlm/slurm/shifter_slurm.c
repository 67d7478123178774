/* The SPANK plugin (man spank): options at submission, the job's environment, prolog and epilog on its nodes.
 *
 * It holds no policy. At submission `shifter-wlm submit`, as the user, checks what was asked for, looks the image up once and answers
 * with the variables that the job carries from then on. On the nodes `shifter-wlm prolog` and `epilog`, as root, treat those
 * variables as what they are: text from a user. What went wrong in a prolog is written down and fails the job's steps, in whose
 * output the user sees it; a prolog that failed itself would drain the node.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

#include "job.h"
#include "program.h"
#include "settings.h"

SPANK_PLUGIN(shifter, 1)

static const char *const CARRIED[] = { "SHIFTER_IMAGE", "SHIFTER_IMAGETYPE", "SHIFTER_IMAGEREQUEST", "SHIFTER_VOLUME", "SHIFTER_MODULE",
				       "SHIFTER_CCM", NULL };

/* Exit statuses of `shifter-wlm submit` and `shifter-wlm prolog`. */
enum { LOOKUP_FAILED = 2, USER_MISTAKE = 2, NODE_FAULT = 3 };

/* ---- options */

enum { IMAGE, VOLUME, MODULE, CCM, WAIT, OPTIONS };

static char *given[OPTIONS];	/* what the user said, on this command line */

/* Whether `item` is one of `list`, which are separated by semicolons. */
static bool listed(const char *list, const char *item)
{
	size_t n = strlen(item);
	for (const char *at = list; at; at = strchr(at, ';') ? strchr(at, ';') + 1 : NULL)
		if (!strncmp(at, item, n) && (at[n] == ';' || !at[n]))
			return true;
	return false;
}

static int take(int which, const char *text, int remote)
{
	if (remote)
		return 0;	/* the job's variables say it, and all of it: of a repeated option only the last value comes here */
	char *value = NULL;
	if (!text)
		text = "1";
	if (which == VOLUME && given[VOLUME] && listed(given[VOLUME], text))
		return 0;	/* sbatch reads the options of a heterogeneous job once for each part */
	if (which == VOLUME && given[VOLUME] ? asprintf(&value, "%s;%s", given[VOLUME], text) < 0 : !(value = strdup(text)))
		return -1;
	free(given[which]);
	given[which] = value;
	return 0;
}

static struct spank_option options[OPTIONS + 1] = {
	[IMAGE] = { "image", "TYPE:NAME", "container image of the job, as docker:ubuntu:24.04 (shifter)", 1, IMAGE, take },
	[VOLUME] = { "volume", "FROM:TO", "directory to see in the container; repeatable (shifter)", 1, VOLUME, take },
	[MODULE] = { "module", "NAMES", "shifter modules, comma-separated, or none (shifter)", 1, MODULE, take },
	[CCM] = { "ccm", NULL, "run the job in a container of the node itself, with sshd (shifter)", 0, CCM, take },
	[WAIT] = { "image-wait", NULL, "pull the image first if the gateway does not have it (shifter)", 0, WAIT, take },
};
static struct spank_option long_options[OPTIONS];

static int register_options(spank_t spank, const struct settings *settings)
{
	for (int i = 0; i < OPTIONS; i++) {
		if (i == CCM && !settings->enable_ccm)
			continue;
		struct spank_option *option = &options[i];
		if (settings->long_options) {
			long_options[i] = options[i];
			if (asprintf(&long_options[i].name, "shifter-%s", options[i].name) < 0)
				return -1;
			option = &long_options[i];
		}
		if (spank_option_register(spank, option) != ESPANK_SUCCESS) {
			slurm_error("shifter: option --%s cannot be registered: has another plugin taken it? "
				    "(long_options=1 gives --shifter-%s)", option->name, options[i].name);
			return -1;
		}
	}
	return 0;
}

/* Slurm hands the options of a job down to the commands run in it, a repeated one with its last value only. The job's own variables
 * are complete, so those of Slurm are dropped here, before they are read, wherever ours are there. */
static void forget_inherited_options(const struct settings *settings)
{
	if (!getenv("SHIFTER_IMAGEREQUEST"))
		return;
	for (int i = 0; i < OPTIONS; i++) {
		char *name = NULL;
		if (asprintf(&name, "SLURM_SPANK__SLURM_SPANK_OPTION_shifter_%s%s", settings->long_options ? "shifter-" : "",
			     options[i].name) < 0)
			continue;
		for (char *c = name; *c; c++)
			*c = *c == '-' ? '_' : *c;
		unsetenv(name);
		unsetenv(name + strlen("SLURM_SPANK_"));
		free(name);
	}
}

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
	spank_context_t context = spank_context();
	struct settings settings;
	if (context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR && context != S_CTX_REMOTE)
		return 0;
	if (settings_read(&settings, count, arguments, false))
		return -1;
	if (context != S_CTX_REMOTE)
		forget_inherited_options(&settings);
	return register_options(spank, &settings);
}

/* ---- submission */

/* Each line NAME=VALUE of `text` goes into this command's environment, which is the job's, and into that of prolog and epilog. */
static int carry(spank_t spank, char *text, bool allocates)
{
	char *rest = NULL;
	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		char *equals = strchr(line, '=');
		if (!equals || strncmp(line, "SHIFTER_", 8))
			continue;
		*equals = '\0';
		const char *value = equals + 1;
		if (strcmp(line, "SHIFTER_SSHKEY") && setenv(line, value, 1))	/* that one is for the nodes' root alone */
			return -1;
		if (allocates && spank_job_control_setenv(spank, line, value, 1) != ESPANK_SUCCESS) {
			slurm_error("shifter: %s could not be passed to the job's nodes", line);
			return -1;
		}
	}
	return 0;
}

static int submit(spank_t spank, int count, char **arguments)
{
	bool allocates = spank_context() == S_CTX_ALLOCATOR || !getenv("SLURM_JOB_ID");
	if (allocates && getenv("SLURM_JOB_ID")) {	/* a job submitted from within a job has that one's image, unless it says otherwise */
		static const char *const names[] = { "SHIFTER_IMAGEREQUEST", "SHIFTER_VOLUME", "SHIFTER_MODULE" };
		for (int i = IMAGE; i <= MODULE; i++)
			if (!given[i] && getenv(names[i]) && (i == IMAGE || !given[IMAGE]))
				given[i] = strdup(getenv(names[i]));
	}
	if (!given[IMAGE] && !given[VOLUME] && !given[MODULE] && !given[CCM])
		return 0;
	struct settings settings;
	if (settings_read(&settings, count, arguments, true))
		return -1;
	struct program program;
	program_begin(&program, &settings, "submit");
	static const char *const names[OPTIONS] = { "--image", "--volume", "--module", "--ccm", "--wait" };
	for (int i = 0; i < OPTIONS; i++)
		if (given[i])
			program_add(&program, names[i], options[i].has_arg ? given[i] : NULL);
	if (allocates && settings.enable_sshd)
		program_add(&program, "--sshd", NULL);
	char *output;
	int status = program_run(&program, environ, &output);
	if (status == 0)
		status = carry(spank, output, allocates);
	else
		slurm_error(status == LOOKUP_FAILED ? "shifter: Failed to lookup image.  Aborting." : "shifter: nothing was submitted");
	free(output);
	return status ? -1 : 0;
}

/* ---- steps, on the nodes, before they drop root's rights */

/* The first line of <state>/<job><suffix>, at most 4 KiB, or NULL. The directory is root's. */
static char *state_text(const struct settings *settings, uint32_t job, const char *suffix)
{
	char *path = NULL, text[4096];
	if (asprintf(&path, "%s/%u%s", settings->state, job, suffix) < 0)
		return NULL;
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	free(path);
	ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
	if (file >= 0)
		close(file);
	if (n < 0)
		return NULL;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return strdup(text);
}

static bool state_has(const struct settings *settings, uint32_t job, const char *suffix)
{
	char *text = state_text(settings, job, suffix);
	free(text);
	return text != NULL;
}

static char *failed;	/* in a step's daemon: why the prolog could not prepare this node for the job */

static uint32_t step_of(spank_t spank)
{
	uint32_t step = 0;
	return spank_get_item(spank, S_JOB_STEPID, &step) == ESPANK_SUCCESS ? step : 0;
}

/* Read while the step's daemon is still root; it becomes the user before slurm_spank_user_init. */
static int remember_failure(spank_t spank, int count, char **arguments)
{
	struct settings settings;
	uint32_t id = 0;
	if (spank_get_item(spank, S_JOB_ID, &id) != ESPANK_SUCCESS || settings_read(&settings, count, arguments, true))
		return -1;
	failed = step_of(spank) == SLURM_EXTERN_CONT ? NULL : state_text(&settings, id, ".failed");
	return 0;
}

int slurm_spank_init_post_opt(spank_t spank, int count, char **arguments)
{
	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
		return submit(spank, count, arguments);
	case S_CTX_REMOTE:
		return remember_failure(spank, count, arguments);
	default:
		return 0;
	}
}

/* With --export=NONE a job loses our variables; Slurm's own copies (SLURM_SPANK_) stay. */
int slurm_spank_user_init(spank_t spank, int count, char **arguments)
{
	static char value[128 * 1024];
	(void)count, (void)arguments;
	for (int i = 0; CARRIED[i]; i++) {
		char name[64];
		snprintf(name, sizeof name, "SLURM_SPANK_%s", CARRIED[i]);
		if (spank_getenv(spank, CARRIED[i], value, sizeof value) == ESPANK_ENV_NOEXIST
		    && spank_getenv(spank, name, value, sizeof value) == ESPANK_SUCCESS)
			spank_setenv(spank, CARRIED[i], value, 0);
	}
	return 0;
}

/* The task ends here when its node could not be prepared. Not earlier: a batch step whose launch fails drains the node. */
int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
	(void)spank, (void)count, (void)arguments;
	if (!failed)
		return 0;
	slurm_error("shifter: %s", failed);
	return -1;
}

/* The user's processes of a --ccm job run in a container made of the node itself: the site's own root, so that nothing of a user's
 * making is run with root's rights (documentation, 6.2.4). */
int slurm_spank_task_init_privileged(spank_t spank, int count, char **arguments)
{
	struct settings settings;
	char flag[8];
	uint32_t id = 0;
	if (settings_read(&settings, count, arguments, false) || !settings.enable_ccm || step_of(spank) == SLURM_EXTERN_CONT
	    || spank_getenv(spank, "SHIFTER_CCM", flag, sizeof flag) != ESPANK_SUCCESS || strcmp(flag, "1"))
		return 0;
	if (settings_read(&settings, count, arguments, true) || spank_get_item(spank, S_JOB_ID, &id) != ESPANK_SUCCESS)
		return -1;
	if (!state_has(&settings, id, ".ccm")) {	/* the prolog's word: the variable alone is the user's */
		slurm_error("shifter: --ccm: this node was not prepared for job %u: whole nodes are needed (--exclusive)", id);
		return -1;
	}
	char *directory = getcwd(NULL, 0);
	if (chroot(settings.udi_mount) || chdir(directory ? directory : "/") ? chdir("/") : 0) {
		slurm_error("shifter: --ccm: %s: %s", settings.udi_mount, strerror(errno));
		return -1;
	}
	free(directory);
	return 0;
}

/* The extern step: what the site wants to run there, and the sshd when it is to belong to the step. */
int slurm_spank_task_post_fork(spank_t spank, int count, char **arguments)
{
	struct settings settings;
	uint32_t id = 0;
	uid_t uid = 0;
	if (step_of(spank) != SLURM_EXTERN_CONT || settings_read(&settings, count, arguments, true)
	    || (!settings.extern_setup && !(settings.enable_sshd && settings.extern_cgroup))
	    || spank_get_item(spank, S_JOB_ID, &id) != ESPANK_SUCCESS || spank_get_item(spank, S_JOB_UID, &uid) != ESPANK_SUCCESS)
		return 0;
	if (!state_has(&settings, id, ".ready"))
		return 0;
	struct program program;
	program_begin(&program, &settings, "extern");
	program_add_number(&program, "--job", id);
	program_add_number(&program, "--uid", uid);
	if (settings.extern_setup)
		program_add(&program, "--setup", settings.extern_setup);
	if (settings.enable_sshd && settings.extern_cgroup)
		program_add(&program, "--sshd", settings.sshd_port);
	program_start(&program, environ);
	return 0;
}

/* ---- prolog and epilog, as root, with SPANK_ copies of the job's variables in their environment */

int slurm_spank_job_prolog(spank_t spank, int count, char **arguments)
{
	struct settings settings;
	struct job job;
	uint32_t id = 0;
	if (!getenv("SPANK_SHIFTER_IMAGE"))
		return 0;
	if (settings_read(&settings, count, arguments, true) || spank_get_item(spank, S_JOB_ID, &id) != ESPANK_SUCCESS || job_load(&job, id))
		return -1;
	if (!job.exclusive)
		return 0;	/* nodes shared with other jobs have no prepared environment: each start makes its own */
	struct program program;
	program_begin(&program, &settings, "prolog");
	program_add_number(&program, "--job", id);
	program_add_number(&program, "--uid", job.uid);
	program_add_number(&program, "--gid", job.gid);
	program_add(&program, "--nodes", job.nodes);
	program_add_number(&program, "--memory", job.memory);
	if (settings.enable_sshd)
		program_add(&program, "--sshd", settings.sshd_port);
	if (settings.extern_cgroup)
		program_add(&program, "--sshd-later", NULL);
	if (settings.enable_ccm)
		program_add(&program, "--ccm", NULL);
	if (settings.memory_cgroup)
		program_add(&program, "--memory-cgroup", settings.memory_cgroup);
	char *reason;
	int status = program_run(&program, environ, &reason);
	if (reason)
		reason[strcspn(reason, "\n")] = '\0';
	if (status == USER_MISTAKE || status == NODE_FAULT) {	/* the reason is written down for the job's steps */
		job_comment(id, reason);
		if (status == NODE_FAULT)
			node_drain(reason);
		status = 0;
	} else if (status) {
		node_drain(reason && *reason ? reason : "shifter: the prolog failed: see slurmd's log");
	}
	free(reason);
	return status ? -1 : 0;
}

int slurm_spank_job_epilog(spank_t spank, int count, char **arguments)
{
	struct settings settings;
	uint32_t id = 0;
	if (settings_read(&settings, count, arguments, true) || spank_get_item(spank, S_JOB_ID, &id) != ESPANK_SUCCESS)
		return -1;
	if (!state_has(&settings, id, ""))
		return 0;	/* nothing of ours was begun for this job here */
	struct program program;
	program_begin(&program, &settings, "epilog");
	program_add_number(&program, "--job", id);
	if (settings.memory_cgroup)
		program_add(&program, "--memory-cgroup", settings.memory_cgroup);
	char *output;
	int status = program_run(&program, environ, &output);
	if (output)
		output[strcspn(output, "\n")] = '\0';
	if (status)
		node_drain(output && *output ? output : "shifter: a job's environment could not be removed");
	free(output);
	return 0;
}
