"""Users who mean ill, or err: variables set to anything, volumes and images that no node can do, processes left behind.

Each has one outcome: refused at submission, run as if nothing had been said, or failed on the node with the reason. The
node stays in service and clean in all of them.
"""

import json
import subprocess
import tarfile
from collections.abc import Iterator

import pytest

from sim.cluster import until
from tests.site.slurm_forged import Forger, forger
from tests.site.slurm_jobs import ALICE, BOB, Jobs, slurm_site

pytestmark = pytest.mark.slurm

JOIN = ("--exclusive", "--image=busybox:1")
FOREIGN = "f" * 64
UNPRINTABLE = "holds a control character, or is longer than 65536 characters"
FOR_THE_SITE = "volume '/:/etc:rec': flag 'rec' is for the site: users have ro perNodeCache"
THE_SYSTEMS = "volume '/tmp:/etc/x': /etc is the system's in a container: choose another target, as /mnt"
WHO = "id -u; grep NoNewPrivs /proc/self/status; shifter sh -c 'id -u; grep ^ID /etc/os-release; ! ls -d /mnt 2> /dev/null'"
UNHARMED = f"{ALICE}\nNoNewPrivs:\t0\n{ALICE}\nID=busybox\n"


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    # Alloc alone is enough without an sshd in the extern step.
    udiroot = ["holdLinger=0", "module_only_siteEnv=ONLY=1"]
    with slurm_site(1, udiroot=udiroot, slurm_conf={"PrologFlags": "Alloc"}) as found:
        yield found


@pytest.fixture(scope="module")
def forge(jobs: Jobs) -> Forger:
    return forger(jobs)


@pytest.fixture(autouse=True)
def the_node_stays_in_service_and_nothing_is_left_there(jobs: Jobs) -> Iterator[None]:
    yield
    jobs.idle()
    assert jobs.reasons() == {"n1": "idle none"}
    var = jobs.site.directory / "var"
    left = f"ls -A {var}/udiMount; ls -A {var}/loopMount/wlm; pgrep -u {ALICE}"
    assert jobs.cluster.on_node("n1", ["sh", "-c", left]).stdout == ""


def test_the_prolog_flag_alloc_alone_prepares_the_node(jobs: Jobs) -> None:
    assert "PrologFlags             = Alloc\n" in jobs.cluster.command("scontrol", "show", "config")
    node = jobs.cluster.on_node("n1", ["readlink", "/proc/1/ns/mnt"]).stdout
    assert jobs.srun("-N1", *JOIN, "shifter", "readlink", "/proc/self/ns/mnt") == node


def identifier(jobs: Jobs) -> str:
    return jobs.run("shifterimg", "lookup", "busybox:1").stdout.strip()


def failed_on_the_node(jobs: Jobs, job: str) -> str:
    """Why a job failed on its node, as its output and Slurm both say; nothing of it ran."""
    assert jobs.wait(job) == "FAILED"
    first = jobs.output(job).splitlines()[0]
    reason = first.partition(f"shifter: job {job}: ")[2]
    assert reason and jobs.comment(job) == f"shifter: job {job}: {reason}"
    assert "ran" not in jobs.output(job).splitlines()
    return reason


@pytest.mark.parametrize(
    "variables",
    [
        {"SPANK_SHIFTER_IMAGE": "../../etc"},
        {"SPANK_SHIFTER_IMAGETYPE": "local", "SPANK_SHIFTER_IMAGE": "/"},
        {"SLURM_SPANK_SHIFTER_IMAGE": FOREIGN, "SLURM_SPANK_SHIFTER_VOLUME": "/:/mnt"},
        {"_SLURM_SPANK_OPTION_shifter_image": "local:/", "SLURM_SPANK__SLURM_SPANK_OPTION_shifter_image": "local:/"},
        {"SHIFTER_IMAGE": "x" * 30000, "SHIFTER_IMAGETYPE": "id;rm -rf /"},
        {"SHIFTER_IMAGEREQUEST": "x\nSHIFTER_CCM=1", "SHIFTER_CCM": "1", "SHIFTER_SSHKEY": "x"},
        {"SHIFTER_CONFIG": "/tmp/udiRoot.conf"},
        {"LD_PRELOAD": "/nonexistent.so", "PYTHONPATH": "/nonexistent", "PATH_INFO": "x"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_variable_in_the_users_environment_does_not_change_what_was_asked_for(
    jobs: Jobs, variables: dict[str, str]
) -> None:
    script = f"unset LD_PRELOAD; {WHO}"
    job = jobs.sbatch(script, "-N1", *JOIN, env=variables)
    assert jobs.wait(job) == "COMPLETED", jobs.output(job)
    assert [line for line in jobs.output(job).splitlines() if "LD_PRELOAD" not in line] == UNHARMED.splitlines()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"SHIFTER_VOLUME": "/:/etc:rec"}, FOR_THE_SITE),
        ({"SHIFTER_VOLUME": "/tmp:/etc/x"}, THE_SYSTEMS),
        ({"SHIFTER_VOLUME": "/tmp:/mnt\nSHIFTER_IMAGE=x"}, f"SHIFTER_VOLUME {UNPRINTABLE}"),
        ({"SHIFTER_VOLUME": "/tmp:/" + "x" * 70_000}, f"SHIFTER_VOLUME {UNPRINTABLE}"),
        ({"SHIFTER_MODULE": "$(id)"}, "no module '$(id)' here: this site has: only"),
        ({"SHIFTER_MODULE": "only\nSHIFTER_CCM=1"}, f"SHIFTER_MODULE {UNPRINTABLE}"),
    ],
)  # fmt: skip
def test_a_default_in_the_users_environment_that_cannot_be_is_refused_at_submission(
    jobs: Jobs, variables: dict[str, str], reason: str
) -> None:
    done = jobs.run("sbatch", "-N1", *JOIN, "--wrap=true", env=variables)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == f"shifter: {reason}"
    assert jobs.cluster.command("squeue", "-h") == ""


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"IMAGE": "../../etc", "IMAGETYPE": "id"}, "'../../etc' is no image identifier: it has 64 digits 0-9a-f"),
        ({"IMAGE": FOREIGN, "IMAGETYPE": "id"}, f"no image id:{FOREIGN} on this system: pull it, or see `shifterimg images`"),
        ({"IMAGE": "/", "IMAGETYPE": "local"}, "local images are not allowed here: allowLocalChroot is not set in udiRoot.conf"),
        ({"IMAGETYPE": "id;rm -rf /"}, "image type 'id;rm -rf /' cannot be set up on a node: a job carries id or local"),
        ({"IMAGETYPE": ""}, "image type '' cannot be set up on a node: a job carries id or local"),
        ({"VOLUME": "/:/etc:rec"}, FOR_THE_SITE),
        ({"VOLUME": "/tmp:/mnt\n/etc:/etc"}, f"SHIFTER_VOLUME {UNPRINTABLE}"),
        ({"VOLUME": "/tmp:/" + "x" * 70_000}, f"SHIFTER_VOLUME {UNPRINTABLE}"),
        ({"VOLUME": "/tmp:/mnt/\udcff"}, f"SHIFTER_VOLUME {UNPRINTABLE}"),
        ({"IMAGEREQUEST": "\x1b[2J"}, f"SHIFTER_IMAGEREQUEST {UNPRINTABLE}"),
        ({"MODULE": "$(id)"}, "no module '$(id)' here: this site has: only"),
        ({"CCM": "1"}, "SHIFTER_CCM goes with the image local:/ only: use --ccm"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_forged_variable_of_the_job_fails_it_on_the_node_with_the_reason(
    jobs: Jobs, forge: Forger, variables: dict[str, str], reason: str
) -> None:
    believable = {"IMAGE": identifier(jobs), "IMAGETYPE": "id"}
    forged = {f"SHIFTER_{name}": value for name, value in (believable | variables).items()}
    assert failed_on_the_node(jobs, forge.submit(forged, "-N1", "--exclusive")) == reason


def test_a_forged_volume_is_looked_at_with_the_users_rights(jobs: Jobs, forge: Forger) -> None:
    closed = jobs.site.directory / "closed"
    (closed / "inner").mkdir(parents=True, exist_ok=True)
    closed.chmod(0o700)
    forged = {
        "SHIFTER_IMAGE": identifier(jobs),
        "SHIFTER_IMAGETYPE": "id",
        "SHIFTER_VOLUME": f"{closed}/inner:/mnt",
    }
    reason = failed_on_the_node(jobs, forge.submit(forged, "-N1", "--exclusive"))
    assert f"{closed}/inner" in reason and "Permission denied" in reason


def test_a_forged_identifier_of_another_users_image_is_as_if_there_were_none(jobs: Jobs, forge: Forger) -> None:
    jobs.push("private:1", "private")
    image = jobs.pull("private:1", uid=BOB)
    sidecar = jobs.site.directory / "images" / f"{image}.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"public": False, "uids": [BOB], "gids": []}))
    forged = {"SHIFTER_IMAGE": image, "SHIFTER_IMAGETYPE": "id"}
    reason = failed_on_the_node(jobs, forge.submit(forged, "-N1", "--exclusive"))
    assert reason == f"no image id:{image} on this system: pull it, or see `shifterimg images`"


def test_forged_variables_of_other_names_reach_no_program(jobs: Jobs, forge: Forger) -> None:
    names = ("PATH", "LD_PRELOAD", "PYTHONPATH", "SHIFTER_CONFIG", "SHIFTER_NOSUCH", "TMPDIR", "IFS", "SLURM_CONF")
    forged = {"SHIFTER_IMAGE": identifier(jobs), "SHIFTER_IMAGETYPE": "id"} | dict.fromkeys(names, "/nonexistent")
    variables = f"export SHIFTER_IMAGE={identifier(jobs)} SHIFTER_IMAGETYPE=id; "
    job = forge.submit(forged, "-N1", "--exclusive", script=variables + WHO)
    assert jobs.wait(job) == "COMPLETED", jobs.output(job)
    assert jobs.output(job) == UNHARMED


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        ("/tmp:/mnt:perNodeCache=size=1000000T", "cannot make a perNodeCache file: "),
        ("/tmp:/mnt:perNodeCache=size=4k", "cannot make a perNodeCache file system: "),
        ("/tmp:/mnt:perNodeCache=size=1G,fs=nosuch", "volume /tmp:/mnt: perNodeCache with fs=nosuch: "),
    ],
)
def test_a_cache_that_no_node_can_make_fails_the_job_alone(jobs: Jobs, volume: str, reason: str) -> None:
    job = jobs.sbatch("echo ran", "-N1", *JOIN, f"--volume={volume}")
    assert failed_on_the_node(jobs, job).startswith(reason)


def member(text: str) -> tarfile.TarInfo:
    """A directory "NAME/" or a link "NAME>TARGET" of an image."""
    name, link, target = text.partition(">")
    found = tarfile.TarInfo(name.rstrip("/"))
    found.type, found.linkname, found.mode = tarfile.SYMTYPE if link else tarfile.DIRTYPE, target, 0o755
    return found


@pytest.mark.parametrize(
    ("name", "members", "reason"),
    [
        ("hostsdir", ["var/", "var/hostsfile/"], "cannot make a file of the container: /var/hostsfile: "),
        ("varaway", ["var>../../../../tmp"], "cannot write in the container: /tmp/hostsfile: "),
        ("etcloop", ["etc>/etc"], "/etc: "),
    ],
)
def test_an_image_that_cannot_be_a_container_fails_the_job_alone(
    jobs: Jobs, name: str, members: list[str], reason: str
) -> None:
    jobs.push(f"{name}:1", name, [member(text) for text in members])
    jobs.pull(f"{name}:1")
    job = jobs.sbatch("echo ran", "-N1", "--exclusive", f"--image={name}:1")
    assert failed_on_the_node(jobs, job).startswith(reason)


@pytest.mark.parametrize(
    "left",
    [
        "cd {mount}/etc; setsid sleep 9999",
        "setsid sleep 9999 < {mount}/etc/os-release",
        "setsid {mount}/bin/sleep 9999",
        "setsid shifter sleep 9999",
    ],
)
def test_what_a_user_leaves_running_in_the_prepared_container_ends_with_the_job(jobs: Jobs, left: str) -> None:
    mount = jobs.site.directory / "var" / "udiMount"
    background = f"({left.format(mount=mount)}) > /dev/null 2>&1 &"
    waits = f"while ! pgrep -u {ALICE} -x sleep > /dev/null; do sleep 0.02; done"  # not this one: it has ended then
    job = jobs.sbatch(f"{background}\n{waits}\n", "-N1", *JOIN)
    assert jobs.wait(job) == "COMPLETED", jobs.output(job)


def test_an_administrators_shell_in_the_prepared_container_is_not_ended(jobs: Jobs) -> None:
    mount = jobs.site.directory / "var" / "udiMount"
    job = jobs.sbatch("touch here; while [ ! -e go ]; do sleep 0.02; done", "-N1", *JOIN)
    until((jobs.scratch / "here").exists, "the job runs")
    enter = ["nsenter", "--target", str(jobs.cluster.pid("n1")), "--mount", "--pid"]
    with subprocess.Popen([*enter, "sh", "-c", f"cd {mount} && echo in && read line"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as shell:  # fmt: skip
        assert shell.stdout is not None and shell.stdout.readline() == "in\n"
        (jobs.scratch / "go").touch()
        assert jobs.wait(job) == "COMPLETED"
        assert shell.poll() is None
        assert "was in use" in jobs.reasons()["n1"]
        shell.communicate("\n")
    jobs.resume("n1")
    assert jobs.done("srun shifter echo well", "-N1", *JOIN) == "well\n"
