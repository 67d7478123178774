/* What the plugin was told: the arguments behind its name in plugstack.conf, and the few keys of udiRoot.conf it needs. */
#pragma once
#include <stdbool.h>

struct settings {
	char *config;		/* udiRoot.conf: shifter_config=, else the path compiled in */
	char *extern_setup;	/* program to run in the extern step's set-up, or NULL */
	char *memory_cgroup;	/* where the memory cgroup hierarchy is mounted, or NULL */
	char *sshd_port;	/* decimal text */
	bool extern_cgroup;	/* the sshd belongs to the extern step */
	bool enable_ccm;
	bool enable_sshd;
	bool long_options;	/* --shifter-image for --image and so on */
	char *root;		/* udiRootPath of udiRoot.conf: our programs are below it */
	char *udi_mount;
	char *state;		/* <loopMount>/wlm: what prolog, steps and epilog of a node tell each other */
};

/* Reads the arguments, and with `paths` udiRoot.conf too. Returns 0, or -1 after slurm_error(); nothing is freed: a plugin reads
 * its settings once in the life of a process. */
int settings_read(struct settings *settings, int count, char **arguments, bool paths);
