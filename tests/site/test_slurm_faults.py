"""What breaks around a job, on a real cluster: gateways, nodes, disks, prologs. Users who mean ill: test_slurm_hostile.py."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sim.cluster import until
from tests.site.slurm_jobs import ALICE, Jobs, slurm_site

pytestmark = pytest.mark.slurm

JOIN = ("--exclusive", "--image=busybox:1")


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    # The hook lets a test hold a prolog half-way: it waits as long as there is a file called hold.
    # Another does the same for epilogs.
    udiroot = ["sitePreMountHook={D}/hook", "holdLinger=0"]
    with slurm_site(3, udiroot=udiroot, slurm_conf={"Epilog": "{D}/epilog"}) as found:
        for name, file in (("hook", "hold"), ("epilog", "hold.epilog")):
            program = found.site.directory / name
            waits = f"while [ -e {found.scratch}/{file} ]; do touch {found.scratch}/held; sleep 0.02; done"
            program.write_text(f"#!/bin/sh\n{waits}\n")
            program.chmod(0o755)
        yield found


@pytest.fixture(autouse=True)
def all_nodes_are_in_service_again(jobs: Jobs) -> Iterator[None]:
    yield
    for name in ("hold", "held", "hold.epilog"):
        (jobs.scratch / name).unlink(missing_ok=True)
    jobs.idle()
    assert not [state for state in jobs.reasons().values() if not state.startswith("idle none")]


def loops(jobs: Jobs) -> int:
    listed = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
    return sum(str(jobs.site.directory).rpartition("/tmp")[2] in line for line in listed.stdout.splitlines())


def clean(jobs: Jobs, node: str) -> bool:
    """Whether nothing of a job is left on a node."""
    var = jobs.site.directory / "var"
    left = f"ls -A {var}/udiMount; ls -A {var}/loopMount/wlm 2>/dev/null; pgrep -u {ALICE}"
    return jobs.cluster.on_node(node, ["sh", "-c", left]).stdout == ""


@contextmanager
def gateway_stopped(jobs: Jobs) -> Iterator[None]:
    pid = subprocess.run(
        ["pgrep", "-f", f"^[^ ]*python[^ ]* .*shifter-gateway.*{jobs.site.directory}"], capture_output=True, text=True
    ).stdout.split()
    assert pid, "the gateway's process"
    for one in pid:
        subprocess.run(["kill", "-STOP", one], check=True)
    try:
        yield
    finally:
        for one in pid:
            subprocess.run(["kill", "-CONT", one], check=True)


def test_gateway_down_at_submission_is_said_and_nothing_is_submitted(jobs: Jobs) -> None:
    conf = jobs.site.directory / "etc" / "udiRoot.conf"
    text = conf.read_text()
    conf.write_text(text.replace(jobs.site.gateway, "http://127.0.0.1:9"))
    try:
        done = jobs.run("sbatch", *JOIN, "--wrap=true")
    finally:
        conf.write_text(text)
    assert done.returncode != 0
    assert "http://127.0.0.1:9" in done.stderr.splitlines()[0] and "Traceback" not in done.stderr
    assert jobs.cluster.command("squeue", "-h") == ""


def test_gateway_down_after_submission_does_not_matter(jobs: Jobs) -> None:
    queued = jobs.sbatch("srun shifter grep ^ID /etc/os-release", "--hold", "-N2", *JOIN)
    with gateway_stopped(jobs):
        jobs.cluster.command("scontrol", "release", queued)
        assert jobs.wait(queued) == "COMPLETED"
    assert jobs.output(queued) == "ID=busybox\n" * 2


def test_cancel_in_the_middle_of_the_prolog_leaves_nothing(jobs: Jobs) -> None:
    (jobs.scratch / "hold").touch()
    job = jobs.sbatch("true", "-N1", "-w", "n1", *JOIN)
    until((jobs.scratch / "held").exists, "the prolog is half-way")
    jobs.run("scancel", job)
    (jobs.scratch / "hold").unlink()
    assert jobs.wait(job) == "CANCELLED"
    assert clean(jobs, "n1")
    assert jobs.done("srun shifter echo well", "-w", "n1", *JOIN) == "well\n"


@pytest.mark.slow  # slurmctld looks at time limits twice a minute
def test_time_limit_ends_the_containers_too(jobs: Jobs) -> None:
    job = jobs.sbatch("srun shifter sh -c 'touch limited; while true; do usleep 50000; done'", "-N1", "-w", "n1", *JOIN)
    until((jobs.scratch / "limited").exists, "the job runs")
    jobs.cluster.command("scontrol", "update", f"JobId={job}", "EndTime=now")
    assert jobs.wait(job, 90) == "TIMEOUT"
    assert clean(jobs, "n1")


def test_node_crash_in_the_prolog_and_its_return(jobs: Jobs) -> None:
    (jobs.scratch / "hold").touch()
    job = jobs.sbatch("true", "-N1", "-w", "n2", "--no-requeue", *JOIN)
    until((jobs.scratch / "held").exists, "the prolog is half-way")
    jobs.cluster.kill_node("n2")
    (jobs.scratch / "hold").unlink()
    jobs.cluster.start_node("n2")
    assert jobs.wait(job) in ("NODE_FAIL", "FAILED", "COMPLETED", "CANCELLED")
    assert jobs.done("srun shifter hostname", "-w", "n2", *JOIN) == "n2\n"


def test_node_crash_in_the_job_and_its_return(jobs: Jobs) -> None:
    job = jobs.sbatch("srun shifter sh -c 'touch crash.$(hostname); while true; do usleep 50000; done'", "-N2", "-w", "n2,n3",
                      "--no-requeue", *JOIN)  # fmt: skip
    until((jobs.scratch / "crash.n3").exists, "the job runs")
    jobs.cluster.kill_node("n3")
    jobs.cluster.start_node("n3")
    assert jobs.wait(job, 90) in ("NODE_FAIL", "FAILED", "CANCELLED")
    assert clean(jobs, "n2") and clean(jobs, "n3")
    assert sorted(jobs.done("srun shifter hostname", "-N2", "-w", "n2,n3", *JOIN).split()) == ["n2", "n3"]


def test_node_crash_in_the_epilog_and_its_return(jobs: Jobs) -> None:
    (jobs.scratch / "hold.epilog").touch()
    job = jobs.sbatch("srun shifter true", "-N1", "-w", "n3", *JOIN)
    until((jobs.scratch / "held").exists, f"the epilog of job {job} is half-way")
    jobs.cluster.kill_node("n3")
    (jobs.scratch / "hold.epilog").unlink()
    jobs.cluster.start_node("n3")
    assert jobs.wait(job) == "COMPLETED"
    assert clean(jobs, "n3")
    assert jobs.done("srun shifter hostname", "-w", "n3", *JOIN) == "n3\n"


def test_slurmd_restarted_in_a_job_does_not_disturb_it(jobs: Jobs) -> None:
    job = jobs.sbatch(
        "shifter sh -c 'touch on; while [ ! -e off ]; do usleep 20000; done; grep ^ID /etc/os-release'",
        "-w",
        "n1",
        *JOIN,
    )
    until((jobs.scratch / "on").exists, "the job runs")
    log = jobs.cluster.layout.directory / "log" / "slurmd.n1.log"
    starts = log.read_text().count("slurmd started")
    jobs.cluster.restart_slurmd("n1")
    until(lambda: log.read_text().count("slurmd started") > starts, "slurmd is back")
    (jobs.scratch / "off").touch()
    assert jobs.wait(job) == "COMPLETED"
    assert jobs.output(job) == "ID=busybox\n"
    assert clean(jobs, "n1")


def node_fault(jobs: Jobs, node: str) -> str:
    """Runs a job on a node that cannot prepare it; returns the reason that the user sees, which the node shows too."""
    job = jobs.sbatch("true", "-N1", "-w", node, *JOIN)
    assert jobs.wait(job) == "FAILED"
    until(lambda: "drain" in jobs.reasons()[node], "the node is drained")
    said = jobs.output(job).splitlines()[0].partition("shifter: ")[2]
    assert said in jobs.reasons()[node] and said in jobs.comment(job)
    assert clean(jobs, node)
    jobs.resume(node)
    return said


def test_a_full_var_drains_the_node_with_the_reason(jobs: Jobs) -> None:
    var = jobs.site.directory / "var" / "loopMount"
    fill = f"mount -o remount,nr_inodes=$(df --output=iused {var} | tail -1 | tr -d ' ') {var}"
    assert jobs.cluster.on_node("n1", ["sh", "-c", fill]).returncode == 0
    job = jobs.sbatch("srun shifter hostname", "-N1", "--nodelist=n1", *JOIN)
    until(lambda: "drain" in jobs.reasons()["n1"], "the node is drained")
    assert "No space left on device" in jobs.reasons()["n1"]
    jobs.cancel(job)
    jobs.cluster.on_node("n1", ["mount", "-o", "remount,nr_inodes=100000", str(var)])
    jobs.resume("n1")
    assert jobs.done("srun shifter echo well", "-w", "n1", *JOIN) == "well\n"


def test_no_loop_device_fails_the_job_with_the_reason_and_drains_the_node(jobs: Jobs) -> None:
    # An empty directory over the node's /dev: no loop-control, no loop devices.
    kept = "/dev/null /dev/zero /dev/urandom /dev/random /dev/tty /dev/ptmx"
    script = f"mount -t tmpfs none /mnt && cp -a {kept} /mnt/ && mkdir /mnt/pts /mnt/shm && mount --move /mnt /dev"
    assert jobs.cluster.on_node("n1", ["sh", "-c", script]).returncode == 0
    try:
        assert "loop" in node_fault(jobs, "n1")
    finally:
        jobs.cluster.on_node("n1", ["umount", "/dev"])
    assert jobs.done("srun shifter echo well", "-w", "n1", *JOIN) == "well\n"


def test_a_users_mistake_on_the_node_fails_the_job_and_leaves_the_node_in_service(jobs: Jobs) -> None:
    gone = jobs.scratch / "gone"
    gone.mkdir()
    job = jobs.sbatch("echo never", "--hold", "-N1", "-w", "n1", *JOIN, f"--volume={gone}:/mnt")
    gone.rmdir()
    jobs.cluster.command("scontrol", "release", job)
    assert jobs.wait(job) == "FAILED"
    assert str(gone) in jobs.output(job) and "never" not in jobs.output(job)
    assert str(gone) in jobs.comment(job)
    assert "drain" not in jobs.reasons()["n1"]
    assert clean(jobs, "n1")


def test_prolog_twice_and_epilog_without_prolog(jobs: Jobs) -> None:
    program = jobs.site.directory / "libexec" / "shifter" / "shifter-wlm"
    conf = jobs.site.directory / "etc" / "udiRoot.conf"
    image = jobs.run("shifterimg", "lookup", "busybox:1").stdout.strip()
    environment = [f"SPANK_SHIFTER_IMAGE={image}", "SPANK_SHIFTER_IMAGETYPE=id", "SLURMD_NODENAME=n1"]
    prolog = ["env", *environment, str(program), "prolog", "--config", str(conf), "--job", "4711", "--uid", str(ALICE)]
    prolog += ["--gid", str(ALICE), "--nodes", "n1/2"]
    epilog = [str(program), "epilog", "--config", str(conf), "--job", "4711"]
    for argv in (prolog, prolog):
        done = jobs.cluster.on_node("n1", argv)
        assert (done.returncode, done.stdout) == (0, ""), done
    inside = f"{jobs.site.directory}/var/udiMount/etc/os-release"
    assert "busybox" in jobs.cluster.on_node("n1", ["cat", inside]).stdout
    for argv in (epilog, epilog):
        done = jobs.cluster.on_node("n1", argv)
        assert (done.returncode, done.stdout) == (0, ""), done
    assert clean(jobs, "n1")


def test_what_a_crashed_job_left_is_removed_by_the_next_prolog(jobs: Jobs) -> None:
    program = jobs.site.directory / "libexec" / "shifter" / "shifter-wlm"
    image = jobs.run("shifterimg", "lookup", "busybox:1").stdout.strip()
    environment = [f"SPANK_SHIFTER_IMAGE={image}", "SPANK_SHIFTER_IMAGETYPE=id"]
    prolog = [
        "env",
        *environment,
        str(program),
        "prolog",
        "--config",
        str(jobs.site.directory / "etc" / "udiRoot.conf"),
    ]
    prolog += ["--job", "4712", "--uid", "1", "--gid", "1", "--nodes", "n2/1"]
    assert jobs.cluster.on_node("n2", prolog).returncode == 0
    shown = jobs.done("srun shifter cat /var/shifterConfig.json", "-w", "n2", *JOIN)
    assert '"user":"www-data"' in shown
    assert clean(jobs, "n2")


def test_after_the_epilog_no_loop_device_is_left(jobs: Jobs) -> None:
    jobs.done("srun -n6 shifter true", "-N3", *JOIN)
    jobs.idle()
    assert loops(jobs) == 0


def test_image_removed_after_submission_is_kept_for_the_job(jobs: Jobs) -> None:
    jobs.push("doomed:1", "doomed")
    jobs.pull("doomed:1")
    queued = jobs.sbatch("srun shifter cat /etc/release", "--hold", "-N1", "--exclusive", "--image=doomed:1")
    removed = jobs.run("shifterimg", "rm", "doomed:1")
    assert removed.returncode == 0, removed.stderr
    jobs.cluster.command("scontrol", "release", queued)
    assert jobs.wait(queued) == "COMPLETED", jobs.output(queued)
    assert jobs.output(queued) == "doomed\n"


def test_image_expired_after_submission_is_kept_for_the_job(jobs: Jobs) -> None:
    identifiers = {}
    for name in ("waited", "unasked"):
        jobs.push(f"{name}:1", name)
        identifiers[name] = jobs.pull(f"{name}:1")
    queued = jobs.sbatch("srun shifter cat /etc/release", "--hold", "-N1", "--exclusive", "--image=waited:1")
    try:
        assert {"docker:waited:1", "docker:unasked:1"} <= set(autoexpire(jobs))
        images = jobs.site.directory / "images"
        assert (images / f"{identifiers['waited']}.squashfs").exists()
        assert not (images / f"{identifiers['unasked']}.squashfs").exists()
        assert jobs.run("shifterimg", "lookup", "waited:1").returncode != 0
        jobs.cluster.command("scontrol", "release", queued)
        assert jobs.wait(queued) == "COMPLETED", jobs.output(queued)
        assert jobs.output(queued) == "waited\n"
    finally:
        jobs.pull("busybox:1")


def autoexpire(jobs: Jobs) -> list[str]:
    """Lets every image expire as by a policy that keeps none unused, sweeps the store without grace; what expired."""
    directory = jobs.site.directory
    strict = directory / "etc" / "strict.json"
    text = (directory / "etc" / "imagemanager.json").read_text()
    kept = '"ImageExpirationTimeout": "90:00:00:00"'
    assert kept in text
    strict.write_text(text.replace(kept, '"ImageExpirationTimeout": "00:00:00:00"'))
    admin = [sys.executable, "-m", "catalog.admin", "--config", str(strict)]
    done = subprocess.run([*admin, "autoexpire", "--json"], check=True, capture_output=True, text=True)
    subprocess.run([*admin, "store", "gc", "--grace", "0"], check=True, capture_output=True)
    return [record["image"] for record in json.loads(done.stdout)]
