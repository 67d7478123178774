"""The sshd in a job's extern step, with Slurm's own cgroups where the machine has them; other option names; EROFS images."""

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sim.cluster import until
from tests.requires import requires
from tests.site.slurm_jobs import ALICE, Jobs, slurm_site
from wlm.sshd_bundle import bundle

FREEZER = Path("/sys/fs/cgroup/freezer")
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])

pytestmark = [pytest.mark.slurm, requires("sshd", "ssh-keygen", "patchelf", "mkfs.erofs")]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    udi_image = tmp_path_factory.mktemp("udiImage")
    bundle(udi_image)
    udiroot = [f"optUdiImage={udi_image}", "siteEnvAppend=PATH=/opt/udiImage/bin"]
    spank = "enable_sshd=1 extern_cgroup=1 long_options=1 sshd_port=2204"
    slurm_conf = {"ProctrackType": "proctrack/cgroup"} if FREEZER.exists() else {}
    erofs = [('"DefaultImageFormat": "squashfs"', '"DefaultImageFormat": "erofs"')]
    with freezer(), slurm_site(2, spank=spank, udiroot=udiroot, slurm_conf=slurm_conf, imagemanager=erofs) as found:
        yield found


@contextmanager
def freezer() -> Iterator[None]:
    """Slurm's freezer cgroups, which bear the nodes' names and belong to the whole machine: ours alone, and removed after."""
    if not FREEZER.exists():
        yield
        return
    directory = os.open(FREEZER.parent, os.O_RDONLY)  # not FREEZER itself: Slurm locks that
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
        # A node that is killed leaves its cgroups, as a crashed one would until its reboot.
        for name in ("slurm_n1", "slurm_n2"):
            for path, _, _ in os.walk(FREEZER / name, topdown=False):
                until(lambda path=path: removed(path), f"the last process has left {path}", 30.0)
    finally:
        os.close(directory)


def removed(cgroup: str) -> bool:
    """Remove a cgroup; false while a process that was killed is still on its way out."""
    try:
        os.rmdir(cgroup)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.mark.skipif(not FREEZER.exists(), reason="no cgroup v1 freezer hierarchy is mounted here")
def test_what_is_started_over_ssh_is_in_the_cgroup_of_the_extern_step(jobs: Jobs) -> None:
    script = """
while ! shifter ssh n1 true 2>/dev/null; do sleep 0.05; done
shifter ssh n1 'grep freezer /proc/self/cgroup'
"""
    job = jobs.sbatch(script, "-N1", "-w", "n1", "--exclusive", "--shifter-image=busybox:1")
    assert jobs.wait(job) == "COMPLETED", jobs.output(job)
    assert f"/slurm_n1/uid_{ALICE}/job_{job}/step_extern" in jobs.output(job)


def test_the_sshd_is_a_process_of_the_extern_step_and_ends_with_it(jobs: Jobs) -> None:
    script = """
while ! shifter ssh n2 true 2>/dev/null; do sleep 0.05; done
shifter ssh n2 'hostname; ps -o pid,ppid,args'
"""
    output = jobs.done(script, "-N2", "-w", "n1,n2", "--exclusive", "--shifter-image=busybox:1")
    assert output.startswith("n2\n")
    processes = {fields[0]: fields[1:] for fields in (line.split(None, 2) for line in output.splitlines()[2:])}
    (sshd,) = [pid for pid, (_, command) in processes.items() if "sshd" in command and "listener" in command]
    ancestors = []
    while sshd in processes:
        ancestors.append(processes[sshd][1])
        sshd = processes[sshd][0]
    assert any("slurmstepd" in command and ".extern]" in command for command in ancestors), output
    jobs.idle()
    assert jobs.cluster.on_node("n2", ["pgrep", "-u", str(ALICE)]).stdout == ""


def test_long_option_names_and_the_port_of_the_sshd(jobs: Jobs) -> None:
    refused = jobs.run("srun", "--image=busybox:1", "true")
    assert refused.returncode != 0 and "unrecognized option" in refused.stderr
    options = (
        "--shifter-image=busybox:1",
        f"--shifter-volume={jobs.scratch}:/a",
        f"--shifter-volume={jobs.scratch}:/b",
    )
    script = "srun shifter ls -d /a /b; shifter grep Port /etc/ssh/ssh_config"
    assert jobs.done(script, "-N1", "--exclusive", *options).split() == ["/a", "/b", "Port", "2204"]


@pytest.mark.skipif(KERNEL < (6, 12), reason="this kernel mounts EROFS from block devices only")
def test_an_erofs_image_takes_no_loop_device(jobs: Jobs) -> None:
    script = """
srun shifter grep -m 1 -o ' erofs ' /proc/mounts
touch mounted; while [ ! -e looked ]; do sleep 0.02; done
"""
    job = jobs.sbatch(script, "-N2", "--exclusive", "--shifter-image=busybox:1")
    until((jobs.scratch / "mounted").exists, "the step is done")
    attached = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
    (jobs.scratch / "looked").touch()
    assert jobs.wait(job) == "COMPLETED", jobs.output(job)
    assert jobs.output(job) == " erofs \n" * 2
    assert str(jobs.site.directory) not in attached.stdout
