"""Submissions by a user with a SPANK plugin of their own: SPANK_ variables of any name and text reach the nodes."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.site.slurm_jobs import Jobs

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <slurm/spank.h>
SPANK_PLUGIN(forger, 1)
extern char **environ;
int slurm_spank_init_post_opt(spank_t spank, int count, char **arguments)
{
    (void)count, (void)arguments;
    for (char **at = environ; *at; at++) {
        char *equals = strchr(*at, '=');
        if (strncmp(*at, "FORGED_", 7) || !equals)
            continue;
        char *name = strndup(*at + 7, (size_t)(equals - *at) - 7);
        if (spank_job_control_setenv(spank, name, equals + 1, 1) != ESPANK_SUCCESS)
            return -1;
        free(name);
    }
    return 0;
}
"""


@dataclass(frozen=True)
class Forger:
    """The user's own slurm.conf, which loads the user's plugin and not ours."""

    jobs: Jobs
    slurm_conf: Path

    def submit(self, variables: Mapping[str, str], *options: str, script: str = "echo ran") -> str:
        """Submits with these variables for the nodes (without SPANK_ in front); the job's number."""
        forged = {f"FORGED_{name}": value for name, value in variables.items()}
        return self.jobs.sbatch(script, *options, env={"SLURM_CONF": str(self.slurm_conf), **forged})


def forger(jobs: Jobs) -> Forger:
    """Compiles the plugin, as a user could, and makes a slurm.conf that is the cluster's but for it."""
    place = jobs.site.directory / "forger"
    place.mkdir(mode=0o755)
    (place / "forger.c").write_text(SOURCE)
    plugin = place / "forger.so"
    argv = ["gcc", "-D_GNU_SOURCE", "-fPIC", "-shared", "-o", str(plugin), str(place / "forger.c")]
    subprocess.run(argv, check=True)
    (place / "plugstack.conf").write_text(f"required {plugin}\n")
    lines = jobs.cluster.layout.slurm_conf.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("PlugStackConfig=")]
    conf = place / "slurm.conf"
    conf.write_text("\n".join([*kept, f"PlugStackConfig={place}/plugstack.conf"]) + "\n")
    return Forger(jobs, conf)
