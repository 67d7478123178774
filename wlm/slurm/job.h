/* What slurmctld knows of a job and the user cannot change, and what a node can tell slurmctld about it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct job {
	uint32_t id;
	uid_t uid;
	gid_t gid;
	bool exclusive;	/* no other job may be on its nodes */
	char *nodes;	/* "n1/2 n2/4": each node with the CPUs that the job has there */
	uint64_t memory;	/* MiB that the job may use on a node, 0: not limited */
};

/* Two requests to slurmctld, one for a job that shares its nodes: then without nodes. Returns 0, or -1 after slurm_error(). */
int job_load(struct job *job, uint32_t id);

/* Leaves the reason of a failure with the job, as its AdminComment. */
void job_comment(uint32_t id, const char *reason);

/* Takes this node out of service, for that reason. */
void node_drain(const char *reason);
