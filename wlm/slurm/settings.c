/* Plugin arguments and the keys of udiRoot.conf that say where things are. See settings.h.
 *
 * udiRoot.conf is parsed in earnest by the programs; here three keys are picked out by name. In slurmd and slurmstepd this runs as
 * root, so the file must be root's and no one else's to write.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

#include "settings.h"

#ifndef CONFIG_PATH
#define CONFIG_PATH "/etc/shifter/udiRoot.conf"
#endif

enum kind { FLAG, PATH, PORT };

/* Whether `value` is one of that kind, and into *target. */
static bool read_value(enum kind kind, const char *value, void *target)
{
	char *end;
	long number = strtol(value, &end, 10);
	bool fits = kind == PATH ? *value == '/' : end != value && !*end && (kind == FLAG ? number == 0 || number == 1 : number > 0 && number < 65536);
	if (fits && kind == FLAG)
		*(bool *)target = number == 1;
	else if (fits)
		fits = (*(char **)target = strdup(value)) != NULL;
	return fits;
}

static int read_argument(struct settings *s, const char *argument)
{
	static const char *const wanted[] = { "0 or 1", "an absolute path", "a port, 1 to 65535" };
	const struct { const char *name; enum kind kind; void *target; } known[] = {
		{ "shifter_config", PATH, &s->config }, { "extern_setup", PATH, &s->extern_setup }, { "extern_cgroup", FLAG, &s->extern_cgroup },
		{ "memory_cgroup", PATH, &s->memory_cgroup }, { "enable_ccm", FLAG, &s->enable_ccm }, { "enable_sshd", FLAG, &s->enable_sshd },
		{ "sshd_port", PORT, &s->sshd_port }, { "long_options", FLAG, &s->long_options },
	};
	size_t n = strcspn(argument, "=");
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (argument[n] && strlen(known[i].name) == n && !strncmp(argument, known[i].name, n)) {
			if (read_value(known[i].kind, argument + n + 1, known[i].target))
				return 0;
			slurm_error("shifter: plugstack.conf: %s: write %s", argument, wanted[known[i].kind]);
			return -1;
		}
	slurm_error("shifter: plugstack.conf: unknown argument %s: known are shifter_config= extern_setup= extern_cgroup= "
		    "memory_cgroup= enable_ccm= enable_sshd= sshd_port= long_options=", argument);
	return -1;
}

/* The value of KEY=VALUE, or NULL. Whitespace around both is dropped. */
static char *value_of(char *line, const char *key)
{
	char *equals = strchr(line, '=');
	if (!equals || *line == '#')
		return NULL;
	char *name = line + strspn(line, " \t");
	size_t n = strcspn(name, " \t=");
	if (n != strlen(key) || strncmp(name, key, n))
		return NULL;
	char *value = equals + 1 + strspn(equals + 1, " \t");
	size_t length = strlen(value);
	while (length && strchr(" \t\r\n", value[length - 1]))
		length--;
	return strndup(value, length);
}

static int read_config(struct settings *s)
{
	FILE *file = fopen(s->config, "re");
	struct stat status;
	bool there = file && !fstat(fileno(file), &status);
	bool ours = there && (geteuid() != 0 || (status.st_uid == 0 && !(status.st_mode & (S_IWGRP | S_IWOTH))));
	if (!there)
		slurm_error("shifter: %s: %s: is shifter_config= right in plugstack.conf?", s->config, strerror(errno));
	else if (!ours)
		slurm_error("shifter: %s: must be owned by root and writable by nobody else", s->config);
	if (!ours) {
		if (file)
			fclose(file);
		return -1;
	}
	char *line = NULL, *loop_mount = NULL;
	size_t size = 0;
	while (getline(&line, &size, file) > 0) {
		char *value;
		if ((value = value_of(line, "udiRootPath")))
			s->root = value;
		else if ((value = value_of(line, "udiMount")))
			s->udi_mount = value;
		else if ((value = value_of(line, "loopMount")))
			loop_mount = value;
	}
	free(line);
	fclose(file);
	if (!s->root)
		s->root = strdup("/opt/shifter/default");
	if (!s->udi_mount || !loop_mount || asprintf(&s->state, "%s/wlm", loop_mount) < 0) {
		slurm_error("shifter: %s: udiMount or loopMount is missing", s->config);
		return -1;
	}
	return 0;
}

int settings_read(struct settings *s, int count, char **arguments, bool paths)
{
	*s = (struct settings){ .config = (char *)CONFIG_PATH, .sshd_port = (char *)"1204" };
	for (int i = 0; i < count; i++)
		if (read_argument(s, arguments[i]))
			return -1;
	if (s->enable_ccm && !s->enable_sshd) {
		slurm_error("shifter: plugstack.conf: enable_ccm=1 needs enable_sshd=1");
		return -1;
	}
	return paths ? read_config(s) : 0;
}
