/* Requests to slurmctld from a node's prolog, through Slurm's public API. See job.h.
 *
 * Whether a job has its nodes to itself is not in the prolog's environment, and what the user said at submission proves nothing:
 * slurmctld is asked on each node for the one job's record, and for its allocation where that is a whole one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLURM_BACKWARD_COMPAT	/* Slurm 26.05 and newer: a job's number may stand for its step_id */
#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
#include <slurm/spank.h>

#include "job.h"

/* Into job->nodes "n1/2 n2/4", and into *here the CPUs on this node. Nothing is there of a job that ended meanwhile. */
static int load_nodes(struct job *job, uint32_t *here)
{
	const char *node = getenv("SLURMD_NODENAME");
	resource_allocation_response_msg_t *found = NULL;
	size_t size;
	char *name;
	FILE *out = open_memstream(&job->nodes, &size);
	int error = slurm_allocation_lookup(job->id, &found) ? errno : 0;
	__auto_type list = slurm_hostlist_create(found ? found->node_list : "");	/* hostlist_t, or from 23.11 on a pointer to it */
	for (uint32_t group = 0, used = 0; out && found && list && (name = slurm_hostlist_shift(list)); free(name), used++) {
		if (group < found->num_cpu_groups && used == found->cpu_count_reps[group])	/* as many nodes have that count */
			group++, used = 0;
		uint32_t cpus = group < found->num_cpu_groups ? found->cpus_per_node[group] : 1;
		fprintf(out, "%s%s/%u", ftell(out) ? " " : "", name, cpus);
		if (node && !strcmp(name, node))
			*here = cpus;
	}
	slurm_hostlist_destroy(list);
	slurm_free_resource_allocation_response_msg(found);
	if (!out || fclose(out))
		return -1;
	if (!error || error == ESLURM_ALREADY_DONE || error == ESLURM_JOB_PENDING)
		return 0;
	slurm_error("shifter: slurmctld does not tell the nodes of job %u: %s", job->id, slurm_strerror(error));
	return -1;
}

int job_load(struct job *job, uint32_t id)
{
	uint32_t cpus = 1;
	job_info_msg_t *answer = NULL;
	if (slurm_load_job(&answer, id, 0) || answer->record_count < 1) {
		slurm_error("shifter: slurmctld does not know job %u: %s", id, slurm_strerror(errno));
		return -1;
	}
	const slurm_job_info_t *info = &answer->job_array[0];
	for (uint32_t i = 0; i < answer->record_count; i++)
		if (answer->job_array[i].job_id == id)	/* an array's or a heterogeneous job's other parts come too */
			info = &answer->job_array[i];
	*job = (struct job){ .id = id, .uid = info->user_id, .gid = info->group_id, .exclusive = info->shared == JOB_SHARED_NONE };
	int failed = job->exclusive ? load_nodes(job, &cpus) : 0;
	job->memory = info->pn_min_memory & MEM_PER_CPU ? (info->pn_min_memory & ~MEM_PER_CPU) * cpus : info->pn_min_memory;
	slurm_free_job_info_msg(answer);
	return failed;
}

void job_comment(uint32_t id, const char *reason)
{
	job_desc_msg_t job;
	char number[16];
	slurm_init_job_desc_msg(&job);
	snprintf(number, sizeof number, "%u", id);
	job.job_id_str = number;
	job.admin_comment = (char *)reason;
	if (slurm_update_job(&job))
		slurm_error("shifter: job %u: the reason could not be left with the job: %s", id, slurm_strerror(errno));
}

void node_drain(const char *reason)
{
	const char *node = getenv("SLURMD_NODENAME");
	update_node_msg_t update;
	slurm_init_update_node_msg(&update);
	update.node_names = (char *)node;
	update.node_state = NODE_STATE_DRAIN;
	update.reason = (char *)reason;
	if (!node || slurm_update_node(&update))
		slurm_error("shifter: node %s could not be drained: %s", node ? node : "?", slurm_strerror(errno));
}
