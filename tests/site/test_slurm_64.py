"""A job on 64 emulated nodes: one look-up, one image open a node, and nothing left."""

import subprocess
from collections.abc import Iterator

import pytest

from sim.cluster import until
from tests.site.slurm_jobs import Jobs, slurm_site

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NODES = 64


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with slurm_site(NODES, udiroot=["holdLinger=0"]) as found:
        yield found


def loops(jobs: Jobs) -> int:
    listed = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
    return sum(str(jobs.site.directory) in line for line in listed.stdout.splitlines())


def test_a_job_on_64_nodes_joins_everywhere_and_leaves_nothing(jobs: Jobs) -> None:
    script = """
srun shifter sh -c 'echo $(hostname) $(grep ^ID /etc/os-release) $(wc -l < /var/hostsfile)'
touch at.work; while [ ! -e go.home ]; do sleep 0.05; done
"""
    job = jobs.sbatch(script, f"-N{NODES}", "--exclusive", "--image=busybox:1")
    until((jobs.scratch / "at.work").exists, "the step is done", 120)
    assert loops(jobs) == NODES
    (jobs.scratch / "go.home").touch()
    assert jobs.wait(job, 120) == "COMPLETED"
    names = jobs.cluster.layout.names()
    assert sorted(jobs.output(job).splitlines()) == sorted(f"{name} ID=busybox {2 * NODES}" for name in names)
    jobs.idle()
    assert loops(jobs) == 0
    for name in names[:: NODES // 4]:
        var = f"{jobs.site.directory}/var"
        assert jobs.cluster.on_node(name, ["ls", f"{var}/udiMount", f"{var}/loopMount/wlm"]).stdout.split() == [
            f"{var}/loopMount/wlm:",
            f"{var}/udiMount:",
        ]


def test_256_tasks_start_at_once_on_16_nodes(jobs: Jobs) -> None:
    inner = ("srun", "-n256", "-O", "shifter", "grep", "^ID", "/etc/os-release")
    done = jobs.run("salloc", "-Q", "-N16", "--exclusive", "--image=busybox:1", *inner, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ID=busybox\n" * 256
