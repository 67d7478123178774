"""The sshd in a job's containers, CCM, the extern step and the memory cgroup, as chapters 6.2 and 6.6 have them."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.cluster import ClusterError, until
from tests.requires import requires
from tests.site import mpi_image
from tests.site.slurm_jobs import ALICE, BOB, Jobs, slurm_site
from wlm.sshd_bundle import bundle

pytestmark = [pytest.mark.slurm, requires("sshd", "ssh-keygen", "patchelf", "umoci"), pytest.mark.xdist_group("sshd")]

JOIN = ("--exclusive", "--image=busybox:1")
HIERARCHY = Path("/sys/fs/cgroup/memory")
# A part of the hierarchy for this process alone: the first job of another cluster on this machine has the same number.
MEMORY = HIERARCHY / f"shifter-test-{os.getpid()}"
SPANK = "enable_sshd=1 enable_ccm=1 extern_setup={hook} memory_cgroup={memory}"


@pytest.fixture(scope="module")
def udi_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("udiImage")
    bundle(directory)
    return directory


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("extern") / "setup"
    program.write_text('#!/bin/sh\necho "$SLURM_JOB_ID of $SLURM_JOB_UID" > "$SHIFTER_UDIMOUNT/opt/udiImage/extern"\n')
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def jobs(udi_image: Path, hook: Path) -> Iterator[Jobs]:
    udiroot = [f"optUdiImage={udi_image}", "siteEnvAppend=PATH=/opt/udiImage/bin", "allowLocalChroot=1"]
    if HIERARCHY.is_dir():
        MEMORY.mkdir()
    with slurm_site(2, spank=SPANK.format(hook=hook, memory=MEMORY), udiroot=udiroot) as found:
        passwd = found.site.directory / "etc" / "shifter_etc_files" / "passwd"
        passwd.write_text(passwd.read_text().replace(":/bin/sh\n", ":/bin/bash\n"))  # which busybox:1 has not
        yield found
    if MEMORY.is_dir():
        MEMORY.rmdir()


@pytest.fixture(autouse=True)
def all_nodes_stay_in_service(jobs: Jobs) -> Iterator[None]:
    yield
    jobs.idle()


def test_ssh_from_inside_lands_inside_the_other_nodes_container(jobs: Jobs) -> None:
    script = "ssh n2 'hostname; id -u; grep ^ID /etc/os-release; readlink /proc/self/ns/mnt'"
    output = jobs.done(f'shifter sh -c "{script}"', "-N2", "-w", "n1,n2", *JOIN)
    there = jobs.cluster.on_node("n2", ["readlink", "/proc/1/ns/mnt"]).stdout
    assert output == f"n2\n{ALICE}\nID=busybox\n{there}"


def push(jobs: Jobs, name: str, tree: Path, *environment: str, mode: int = 0o755) -> None:
    """Has an image of busybox, `tree` over it and these NAME=VALUE pulled; its root directory has `mode`."""
    tree.chmod(mode)
    layout = jobs.site.directory / "oci" / name
    layout.parent.mkdir(exist_ok=True)
    mpi_image.layout(layout, tree)
    for item in environment:
        subprocess.run(["umoci", "config", "--image", f"{layout}:latest", f"--config.env={item}"], check=True)
    jobs.site.push(f"{layout}:latest", f"{name}:1")
    jobs.pull(f"{name}:1")


def test_ssh_lands_in_an_image_without_any_shell(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "ash", "bash", "hush"):
        (tmp_path / "bin" / f".wh.{name}").touch()
    push(jobs, "shellless", tmp_path)
    script = "shifter ssh n2 /bin/hostname; shifter ssh n2 'for n in a b; do echo $n $SHELL; done'"
    output = jobs.done(script, "-N2", "-w", "n1,n2", "--exclusive", "--image=shellless:1")
    assert output == "n2\na /opt/udiImage/ssh/sh\nb /opt/udiImage/ssh/sh\n"


def test_an_image_that_is_closed_to_its_user_fails_the_job_and_drains_no_node(jobs: Jobs, tmp_path: Path) -> None:
    push(jobs, "closed", tmp_path, mode=0o700)
    job = jobs.sbatch("true", "-N1", "-w", "n1", "--exclusive", "--image=closed:1")
    assert jobs.wait(job) in ("FAILED", "CANCELLED")
    assert "the sshd cannot run in this image: its directories are closed to its user" in jobs.output(job)


def test_the_shell_of_a_session_is_the_users_where_the_image_has_it_else_the_images(jobs: Jobs, tmp_path: Path) -> None:
    assert jobs.done("shifter ssh n1 'echo $SHELL'", "-N1", "-w", "n1", *JOIN) == "/bin/sh\n"
    (tmp_path / "bin").mkdir()
    bash = tmp_path / "bin" / "bash"
    bash.write_text('#!/bin/sh\necho bash $1\nexec /bin/sh "$@"\n')
    bash.chmod(0o755)
    push(jobs, "withbash", tmp_path)
    (jobs.scratch / "words").write_text("echo $SHELL again\n")
    script = "shifter ssh n1 'echo $SHELL'; shifter ssh n1 < words"
    output = jobs.done(script, "-N1", "-w", "n1", "--exclusive", "--image=withbash:1")
    assert output == "bash -c\n/bin/bash\nbash -l\n/bin/bash again\n"


def test_libraries_that_an_image_sets_for_its_programs_do_not_reach_the_sshd(jobs: Jobs, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bad").mkdir(parents=True)
    for name in ("libcrypto.so.3", "libc.so.6", "libz.so.1"):
        (tree / "bad" / name).write_text("no library\n")
    # A library that is preloaded and needs one that is not there ends every program.
    for name, options in (("libgone.so", []), ("libpreloaded.so", ["-Wl,--no-as-needed", f"-L{tmp_path}", "-lgone"])):
        argv = ["gcc", "-shared", "-o", str(tmp_path / name), "-x", "c", "/dev/null", "-x", "none", *options]
        subprocess.run(argv, check=True)
    shutil.copyfile(tmp_path / "libpreloaded.so", tree / "bad" / "libpreloaded.so")
    push(jobs, "preloads", tree, "LD_LIBRARY_PATH=/bad", "LD_PRELOAD=/bad/libpreloaded.so")
    script = "shifter --unset-env=LD_PRELOAD ssh n1 'echo $LD_PRELOAD $LD_LIBRARY_PATH'"
    output = jobs.done(script, "-N1", "-w", "n1", "--exclusive", "--image=preloads:1")
    assert output == "/bad/libpreloaded.so /bad\n"


def test_ssh_carries_files_and_the_images_environment(jobs: Jobs) -> None:
    script = """
echo word > file.$SLURM_JOB_ID
shifter scp -S /opt/udiImage/ssh/ssh -q file.$SLURM_JOB_ID n2:copy.$SLURM_JOB_ID
shifter ssh n2 cat copy.$SLURM_JOB_ID
shifter ssh n2 env
"""
    output = jobs.done(script, "-N2", "-w", "n1,n2", *JOIN, f"--volume={jobs.scratch}:{jobs.scratch}")
    assert output.startswith("word\n")
    assert "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n" in output


def test_the_users_own_ssh_config_comes_first(jobs: Jobs) -> None:
    own = jobs.scratch / ".ssh"
    own.mkdir(mode=0o700)
    (own / "config").write_text("Host n2\n    Port 9\n")
    for path in (own, own / "config"):
        os.chown(path, ALICE, ALICE)
    script = "shifter ssh n2 hostname 2>&1; shifter ssh n1 hostname"
    try:
        output = jobs.done(script, "-N2", "-w", "n1,n2", *JOIN, f"--volume={jobs.scratch}:{jobs.scratch}")
    finally:
        shutil.rmtree(own)
    assert "port 9: Connection refused" in output and output.endswith("\nn1\n")


def test_the_sshd_runs_as_the_user_without_any_right(jobs: Jobs) -> None:
    script = "cat /proc/$(ps | awk '/[s]shd.*listener/ {print $1}')/status"
    status = jobs.srun("-N1", *JOIN, "shifter", "sh", "-c", script)
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(ALICE)] * 4
    assert {fields[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_only_the_jobs_user_with_the_jobs_key_gets_in(jobs: Jobs) -> None:
    address = jobs.cluster.layout.address("n1")
    held = jobs.sbatch(
        "touch $SLURM_JOB_ID.here; while [ ! -e $SLURM_JOB_ID.go ]; do sleep 0.02; done", "-N1", "-w", "n1", *JOIN
    )
    until((jobs.scratch / f"{held}.here").exists, "the job runs")
    try:
        with socket.create_connection((address, 1204), timeout=5) as connection:
            assert connection.recv(8).startswith(b"SSH-2.0")
        key = jobs.scratch / "strange"
        for uid in (ALICE, BOB):
            jobs.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{key}{uid}", uid=uid)
            for user in ("www-data", "daemon", "root"):
                options = [
                    "-p",
                    "1204",
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    "UserKnownHostsFile=/dev/null",
                    "-o",
                    "BatchMode=yes",
                ]
                done = jobs.run("ssh", *options, "-i", f"{key}{uid}", f"{user}@{address}", "id", uid=uid)
                assert done.returncode == 255 and "Permission denied" in done.stderr, done
        root = f"{jobs.site.directory}/var/udiMount/opt/udiImage/job"
        assert (
            jobs.cluster.on_node("n1", ["stat", "-c", "%u %a", f"{root}/id", f"{root}/host_key"]).stdout
            == f"{ALICE} 600\n" * 2
        )
    finally:
        (jobs.scratch / f"{held}.go").touch()
    assert jobs.wait(held) == "COMPLETED"


def test_the_key_is_made_for_the_job_and_only_root_on_a_node_can_read_it_on_its_way(jobs: Jobs) -> None:
    script = "env | grep SSHKEY; srun shifter cat /opt/udiImage/job/id.pub"
    first, second = (jobs.done(script, "-N1", *JOIN).splitlines() for _ in range(2))
    assert first[-1].startswith("ssh-ed25519 ") and first[-1] != second[-1]
    carried = first[0].partition("=")[2]
    assert carried.startswith("MUNGE:")
    opened = jobs.run("unmunge", "--socket", str(jobs.site.munge_socket), input=carried)
    assert opened.returncode != 0 and "PRIVATE KEY" not in opened.stdout


def test_nothing_of_the_sshd_is_left_after_the_job(jobs: Jobs) -> None:
    jobs.done("shifter ssh n2 '(while true; do usleep 50000; done) > /dev/null 2>&1 &'", "-N2", "-w", "n1,n2", *JOIN)
    jobs.idle()
    for node in ("n1", "n2"):
        assert jobs.cluster.on_node(node, ["pgrep", "-u", str(ALICE)]).stdout == ""
        assert jobs.cluster.on_node(node, ["ls", f"{jobs.site.directory}/var/loopMount/wlm"]).stdout == ""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((jobs.cluster.layout.address(node), 1204), timeout=5)


def test_a_shared_allocation_has_no_sshd(jobs: Jobs) -> None:
    assert "sshd" not in jobs.srun("-N1", "-n1", "--image=busybox:1", "ps", "ax")


def test_extern_setup_runs_beside_the_extern_step(jobs: Jobs) -> None:
    wait = "n=0; while [ ! -e /opt/udiImage/extern ] && [ $n -lt 500 ]; do usleep 10000; n=$((n+1)); done"
    script = f"{wait}; cat /opt/udiImage/extern; echo $SLURM_JOB_ID of $(id -u)"
    wrote, expected = jobs.srun("-N1", *JOIN, "shifter", "sh", "-c", script).splitlines()
    assert wrote == expected


@pytest.mark.skipif(
    not (HIERARCHY / "memory.usage_in_bytes").exists(), reason="no cgroup v1 memory hierarchy is mounted here"
)
def test_the_sshd_and_its_children_are_in_the_memory_cgroup_of_the_job(jobs: Jobs) -> None:
    script = "ssh n1 'grep memory /proc/self/cgroup'; echo $SLURM_JOB_ID"
    cgroup, job = jobs.srun("-N1", "-w", "n1", "--mem=200", *JOIN, "shifter", "sh", "-c", script).splitlines()
    path = f"/shifter/uid_{ALICE}/job_{job}"
    assert cgroup.endswith(path)
    jobs.idle()
    assert not (MEMORY / path.lstrip("/")).exists()
    assert not (MEMORY / "shifter" / f"uid_{ALICE}").exists()


@pytest.mark.skipif(
    not (HIERARCHY / "memory.usage_in_bytes").exists(), reason="no cgroup v1 memory hierarchy is mounted here"
)
@pytest.mark.parametrize("asked", ["--mem=200", "--mem-per-cpu=100"])
def test_the_memory_cgroup_is_limited_to_what_the_job_has_on_a_node_of_two_cpus(jobs: Jobs, asked: str) -> None:
    limit = f"{MEMORY}/shifter/uid_{ALICE}/job_$SLURM_JOB_ID/memory.limit_in_bytes"
    assert jobs.done(f"cat {limit}", "-N1", "-n1", asked, *JOIN) == f"{200 << 20}\n"


def test_ccm_puts_script_and_tasks_into_a_container_of_the_node(jobs: Jobs) -> None:
    script = "cat /var/hostsfile; srun -n2 sh -c 'cat /var/shifterConfig.json'; ssh n2 'hostname; cat /var/hostsfile'"
    output = jobs.done(script, "-N2", "-n2", "-w", "n1,n2", "--exclusive", "--ccm")
    hosts = "n1\nn1\nn2\nn2\n"
    assert output.startswith(hosts) and output.endswith(f"n2\n{hosts}")
    assert output.count('"user":"www-data"') == 2
    assert not Path("/var/hostsfile").exists()


def test_ccm_needs_whole_nodes_and_no_image(jobs: Jobs) -> None:
    refused = jobs.run("sbatch", "--ccm", "--image=busybox:1", "--wrap=true")
    assert refused.returncode != 0 and "leave --image out" in refused.stderr
    job = jobs.sbatch("true", "--ccm", "-n1")
    assert jobs.wait(job) == "FAILED"
    assert "whole nodes are needed (--exclusive)" in jobs.output(job)


def test_a_forged_ccm_variable_gets_no_chroot(jobs: Jobs) -> None:
    job = jobs.sbatch("cat /var/hostsfile", "-N1", *JOIN, env={"SHIFTER_CCM": "1", "SPANK_SHIFTER_CCM": "1"})
    assert jobs.wait(job) == "FAILED"
    assert "this node was not prepared" in jobs.output(job)


def test_the_cluster_refuses_nonsense_in_plugstack(jobs: Jobs) -> None:
    plugstack = jobs.cluster.layout.directory / "etc" / "plugstack.conf"
    good = plugstack.read_text()
    try:
        for word, reason in {
            "enable_sshd=yes": "write 0 or 1",
            "nosuch=1": "unknown argument nosuch=1: known are",
            "sshd_port=0": "write a port, 1 to 65535",
            "shifter_config=here": "write an absolute path",
            "enable_sshd=0": "enable_ccm=1 needs enable_sshd=1",
        }.items():
            plugstack.write_text(f"{good.strip()} {word}\n")
            with pytest.raises(ClusterError, match=reason):
                jobs.cluster.command("srun", "-N1", "true")
    finally:
        plugstack.write_text(good)
