/* Requests to slurmctld from a node's prolog, through Slurm's public API. See job.h.
 *
 * Whether a job has its nodes to itself is not in the prolog's environment, and what the user said at submission proves nothing:
 * slurmctld is asked, once a node and job, for the one job's record.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
#include <slurm/spank.h>

#include "job.h"

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(23, 11, 0)
typedef hostlist_t *hosts;
#else
typedef hostlist_t hosts;
#endif

/* "n1/2 n2/4": the nodes of the job, in its order, each with the CPUs allocated there. NULL without memory. */
static char *nodes_text(const slurm_job_info_t *info)
{
	hosts list = slurm_hostlist_create(info->nodes ? info->nodes : "");
	char *text = strdup(""), *name;
	for (int i = 0; text && list && (name = slurm_hostlist_shift(list)); i++) {
		char *longer = NULL;
		int cpus = slurm_job_cpus_allocated_on_node_id(info->job_resrcs, i);
		if (asprintf(&longer, "%s%s%s/%d", text, i ? " " : "", name, cpus < 1 ? 1 : cpus) < 0)
			longer = NULL;
		free(name);
		free(text);
		text = longer;
	}
	if (list)
		slurm_hostlist_destroy(list);
	return text;
}

int job_load(struct job *job, uint32_t id)
{
	job_info_msg_t *answer = NULL;
	if (slurm_load_job(&answer, id, SHOW_DETAIL) || answer->record_count < 1) {
		slurm_error("shifter: slurmctld does not know job %u: %s", id, slurm_strerror(errno));
		return -1;
	}
	const slurm_job_info_t *info = &answer->job_array[0];
	for (uint32_t i = 0; i < answer->record_count; i++)
		if (answer->job_array[i].job_id == id)	/* an array's or a heterogeneous job's other parts come too */
			info = &answer->job_array[i];
	uint64_t memory = info->pn_min_memory;
	*job = (struct job){
		.id = id,
		.uid = info->user_id,
		.gid = info->group_id,
		.exclusive = info->shared == JOB_SHARED_NONE,
		.nodes = nodes_text(info),
		.memory = memory & MEM_PER_CPU ? (memory & ~MEM_PER_CPU) * info->pn_min_cpus : memory,
	};
	slurm_free_job_info_msg(answer);
	return job->nodes ? 0 : -1;
}

void job_comment(uint32_t id, const char *reason)
{
	job_desc_msg_t job;
	slurm_init_job_desc_msg(&job);
	job.job_id = id;
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
	update.reason_uid = 0;
	if (!node || slurm_update_node(&update))
		slurm_error("shifter: node %s could not be drained: %s", node ? node : "?", slurm_strerror(errno));
}
