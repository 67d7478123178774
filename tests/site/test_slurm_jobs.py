"""Jobs with images on a real cluster, as the Slurm chapter of the documentation has them: every form of launch, one look-up."""

import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

import wlm.install
from sim.cluster import until
from tests.requires import lack
from tests.site.slurm_jobs import BOB, Jobs, slurm_site
from tests.site.slurm_opens import opens

pytestmark = pytest.mark.slurm

NAMESPACE = ("shifter", "readlink", "/proc/self/ns/mnt")
JOIN = ("--exclusive", "--image=busybox:1")


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    udiroot = [
        "module_first_siteEnv=FIRST=1",
        "module_second_siteEnv=SECOND=1",
        "module_second_conflict=first",
        "module_off_enabled=0",
        "allowLocalChroot=1",
    ]
    refresh = [('"PullUpdateTimeout": 300', '"PullUpdateTimeout": 0')]
    with slurm_site(4, udiroot=udiroot, imagemanager=refresh) as found:
        yield found


@pytest.fixture(autouse=True)
def all_nodes_stay_in_service(jobs: Jobs) -> Iterator[None]:
    yield
    jobs.idle()


def identifier(jobs: Jobs, name: str = "busybox:1") -> str:
    return jobs.run("shifterimg", "lookup", name).stdout.strip()


def test_batch_script_with_options_in_comments(jobs: Jobs) -> None:
    (jobs.scratch / "data").mkdir(exist_ok=True)
    (jobs.scratch / "data" / "word").write_text("here\n")
    script = f"""#!/bin/sh
#SBATCH --image=docker:busybox:1
#SBATCH --volume={jobs.scratch}/data:/input
#SBATCH --volume={jobs.scratch}:/mnt/output
#SBATCH -N2 --exclusive
srun shifter sh -c 'cat /etc/os-release /input/word; echo from $(hostname) > /mnt/output/$(hostname).said'
shifter cat /input/word
"""
    output = jobs.done(script)
    assert output.count("ID=busybox") == 2
    assert output.count("here") == 3
    assert sorted(path.read_text() for path in jobs.scratch.glob("n*.said")) == ["from n1\n", "from n2\n"]


def test_the_job_carries_the_identifier_for_steps_and_tasks(jobs: Jobs) -> None:
    shown = jobs.done("env; srun /usr/bin/env", *JOIN, f"--volume={jobs.scratch}:/mnt", "--module=first")
    for line in (
        f"SHIFTER_IMAGE={identifier(jobs)}",
        "SHIFTER_IMAGETYPE=id",
        "SHIFTER_IMAGEREQUEST=docker:busybox:1",
        f"SHIFTER_VOLUME={jobs.scratch}:/mnt",
        "SHIFTER_MODULE=first",
    ):
        assert shown.splitlines().count(line) == 2, line


def test_salloc_and_srun_take_the_same_options(jobs: Jobs) -> None:
    inner = "srun shifter sh -c 'echo $(hostname) $FIRST'"
    done = jobs.run("salloc", "-N2", *JOIN, "--module=first", "sh", "-c", inner)
    assert sorted(done.stdout.splitlines()) == ["n1 1", "n2 1"], done.stderr
    said = jobs.srun("-N2", *JOIN, "--module=first", "shifter", "sh", "-c", "echo $(hostname) $FIRST")
    assert [line.split()[1] for line in said.splitlines()] == ["1", "1"]


def test_every_task_joins_the_environment_that_the_prolog_made(jobs: Jobs) -> None:
    inside = jobs.srun("-N1", "-w", "n3", "-n2", *JOIN, *NAMESPACE).split()
    node = jobs.cluster.on_node("n3", ["readlink", "/proc/1/ns/mnt"]).stdout.strip()
    assert inside == [node, node]


def test_another_image_or_volume_gets_a_container_of_its_own(jobs: Jobs) -> None:
    jobs.push("other:1", "other")
    jobs.pull("other:1")
    script = f"""
srun shifter readlink /proc/self/ns/mnt
srun shifter --image=other:1 sh -c 'cat /etc/release; readlink /proc/self/ns/mnt'
srun --image=other:1 shifter sh -c 'cat /etc/release; ls /mnt; readlink /proc/self/ns/mnt'
srun shifter --volume={jobs.scratch}/more:/more sh -c 'ls /more; readlink /proc/self/ns/mnt'
srun --volume={jobs.scratch}/more:/more shifter sh -c 'ls /more; readlink /proc/self/ns/mnt'
"""
    (jobs.scratch / "more").mkdir(exist_ok=True)
    (jobs.scratch / "more" / "thing").touch()
    lines = jobs.done(script, "-N1", *JOIN, f"--volume={jobs.scratch}/more:/mnt").splitlines()
    joined, *rest = lines
    assert [line for line in rest if not line.startswith("mnt:")] == ["other", "other", "thing", "thing", "thing"]
    spaces = [line for line in rest if line.startswith("mnt:")]
    assert len(spaces) == 4 and joined not in spaces


def test_a_shared_allocation_gets_no_prepared_environment(jobs: Jobs) -> None:
    node = jobs.cluster.on_node("n1", ["readlink", "/proc/1/ns/mnt"]).stdout
    script = "srun shifter readlink /proc/self/ns/mnt; srun shifter ls /var"
    output = jobs.done(script, "-N1", "-n1", "-w", "n1", "--image=busybox:1")
    assert node not in output and "mnt:" in output
    assert "hostsfile" not in output


def test_the_prepared_environment_is_gone_after_the_job(jobs: Jobs) -> None:
    mount = str(jobs.site.directory / "var" / "udiMount")
    assert jobs.srun("-N1", "-w", "n2", *JOIN, "sh", "-c", f"ls {mount}") != ""
    jobs.idle()
    assert jobs.cluster.on_node("n2", ["ls", mount]).stdout == ""
    mounts = jobs.cluster.on_node("n2", ["cat", "/proc/mounts"]).stdout
    assert [line for line in mounts.splitlines() if f" {mount}/" in line] == []


def test_hostsfile_has_a_line_for_each_task_slot(jobs: Jobs) -> None:
    shown = jobs.srun("-N2", "-n2", "-w", "n1,n2", *JOIN, "shifter", "cat", "/var/hostsfile")
    assert shown == "n1\nn1\nn2\nn2\n" * 2


def test_a_tag_that_moves_on_does_not_move_a_queued_job(jobs: Jobs) -> None:
    jobs.push("moving:1", "before")
    jobs.pull("moving:1")
    queued = jobs.sbatch("srun shifter cat /etc/release", "--hold", "-N1", "--exclusive", "--image=moving:1")
    jobs.push("moving:1", "after")
    jobs.pull("moving:1")
    jobs.cluster.command("scontrol", "release", queued)
    assert jobs.wait(queued) == "COMPLETED", jobs.output(queued)
    assert jobs.output(queued) == "before\n"
    assert jobs.done("srun shifter cat /etc/release", "-N1", "--exclusive", "--image=moving:1") == "after\n"


@pytest.mark.parametrize(
    ("command", "option", "reason"),
    [
        ("sbatch", ["--image=nosuch:1"], r"nosuch:1.*--image-wait"),
        ("salloc", ["--image=nosuch:1"], r"nosuch:1.*--image-wait"),
        ("srun", ["--image=nosuch:1"], r"nosuch:1.*--image-wait"),
        ("sbatch", ["--image=id:123"], "no image identifier"),
        ("sbatch", ["--image=busybox:1", "--volume=/tmp:/etc"], "/etc is the system's"),
        ("sbatch", ["--image=busybox:1", "--volume=/nowhere:/mnt"], "/nowhere: No such file or directory"),
        ("srun", ["--image=busybox:1", "--volume=/tmp"], "has no target"),
        ("salloc", ["--image=busybox:1", "--module=nosuch"], "no module 'nosuch' here: this site has: first second"),
        ("sbatch", ["--image=busybox:1", "--module=off"], "no module 'off' here"),
        ("sbatch", ["--image=busybox:1", "--module=first,second"], "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused_at_submission_with_the_reason(
    jobs: Jobs, command: str, option: list[str], reason: str
) -> None:
    done = jobs.run(command, *option, *(["--wrap=true"] if command == "sbatch" else ["true"]))
    assert done.returncode != 0
    first = done.stderr.splitlines()[0]
    assert first.startswith("shifter: ") and re.search(reason, first)
    assert ("Failed to lookup image.  Aborting." in done.stderr) == (option == ["--image=nosuch:1"])
    assert jobs.cluster.command("squeue", "-h") == ""


def test_image_wait_pulls_shows_how_and_submits(jobs: Jobs) -> None:
    jobs.push("late:1", "late")
    refused = jobs.run("sbatch", "--image=late:1", "--wrap=true")
    assert refused.returncode != 0 and "--image-wait" in refused.stderr
    done = jobs.run(
        "sbatch", "--parsable", "-o", "%j.out", "--image=late:1", "--image-wait", "--wrap=shifter cat /etc/release"
    )
    assert done.returncode == 0 and "status: READY" in done.stderr, done.stderr
    job = done.stdout.strip()
    assert jobs.wait(job) == "COMPLETED"
    assert jobs.output(job) == "late\n"
    failed = jobs.run("sbatch", "--image=nosuch:2", "--image-wait", "--wrap=true")
    assert failed.returncode != 0 and "could not be pulled" in failed.stderr


def test_variables_survive_a_job_without_the_users_environment(jobs: Jobs) -> None:
    volumes = (f"--volume={jobs.scratch}:/a", f"--volume={jobs.scratch}:/b")
    output = jobs.done(
        "export PATH=/usr/bin:/bin; env; srun /usr/bin/env; srun " + str(jobs.site.bin / "shifter") + " ls -d /a /b",
        "--export=NONE", *JOIN, *volumes,
    )  # fmt: skip
    assert output.splitlines().count(f"SHIFTER_VOLUME={jobs.scratch}:/a;{jobs.scratch}:/b") == 2
    assert output.splitlines().count("SHIFTER_IMAGETYPE=id") == 2
    assert output.endswith("/a\n/b\n")


def test_array_tasks_each_have_the_image(jobs: Jobs) -> None:
    job = jobs.sbatch(
        "srun shifter sh -c 'echo $SLURM_ARRAY_TASK_ID; grep ^ID /etc/os-release'", "--array=1-3", "-N1", *JOIN
    )
    jobs.wait(job)
    outputs = [(jobs.scratch / f"{job}.{task}.out").read_text() for task in (1, 2, 3)]
    assert outputs == [f"{task}\nID=busybox\n" for task in (1, 2, 3)]


def test_parts_of_a_heterogeneous_job_have_the_image(jobs: Jobs) -> None:
    script = f"""#!/bin/sh
#SBATCH -N1 --exclusive --image=busybox:1 --volume={jobs.scratch}:/mnt
#SBATCH hetjob
#SBATCH -N2 --exclusive
srun --het-group=0,1 shifter sh -c 'grep -h ^ID /etc/os-release; ls -d /mnt; readlink /proc/self/ns/mnt'
"""
    words = jobs.done(script).split()
    assert (words.count("ID=busybox"), words.count("/mnt"), len(set(words))) == (3, 3, 5)


def test_overlapping_steps_share_the_environment(jobs: Jobs) -> None:
    script = """
srun -n1 shifter sh -c 'readlink /proc/self/ns/mnt > first; while [ ! -e second ]; do usleep 10000; done' &
srun -n1 --overlap shifter sh -c 'readlink /proc/self/ns/mnt > second'
wait
cat first second; rm first second
"""
    first, second = jobs.done(script, "-N1", *JOIN).split()
    assert first == second


def test_a_requeued_job_is_prepared_again(jobs: Jobs) -> None:
    job = jobs.sbatch("srun shifter sh -c 'echo run $SLURM_RESTART_COUNT; [ -e go ] || touch started; "
                      "while [ ! -e go ]; do usleep 10000; done'", "-N1", "--requeue", "--open-mode=append", *JOIN)  # fmt: skip
    until((jobs.scratch / "started").exists, "the job runs")
    jobs.cluster.command("scontrol", "requeue", job)
    until(lambda: jobs.facts(job)["Restarts"] == "1", "the job is requeued")
    (jobs.scratch / "go").touch()
    assert jobs.wait(job, 120) == "COMPLETED"
    assert "run 1\n" in jobs.output(job)
    for name in ("started", "go"):
        (jobs.scratch / name).unlink()


def test_a_job_submitted_from_a_job_inherits_its_image_and_all_its_volumes(jobs: Jobs) -> None:
    volumes = (f"--volume={jobs.scratch}:/a", f"--volume={jobs.scratch}:/b")
    outer = "sbatch --parsable -o %j.out --exclusive -N1 --wrap='srun shifter ls -d /a /b'"
    inner = jobs.done(outer, "-N1", *JOIN, *volumes).strip()
    assert jobs.wait(inner) == "COMPLETED"
    assert jobs.output(inner) == "/a\n/b\n"


def test_script_whose_interpreter_is_shifter_runs_in_the_container(jobs: Jobs) -> None:
    for name in ("exp2/data", "exp2/results"):
        (jobs.scratch / name).mkdir(parents=True, exist_ok=True)
        (jobs.scratch / name).chmod(0o777)
    script = f"""#!{jobs.site.bin}/shifter /bin/sh
#SBATCH --image=busybox:1
#SBATCH --volume={jobs.scratch}/exp2/data:/input
#SBATCH --volume={jobs.scratch}/exp2/results:/output
#SBATCH -c 2 --exclusive
export OMP_NUM_THREADS=32
sh -c 'echo $OMP_NUM_THREADS > /output/threads'
grep ^ID /etc/os-release
readlink /proc/self/ns/mnt
"""
    name, space = jobs.done(script, "-w", "n1").split()
    assert name == "ID=busybox"
    assert space == jobs.cluster.on_node("n1", ["readlink", "/proc/1/ns/mnt"]).stdout.strip()
    assert (jobs.scratch / "exp2/results/threads").read_text() == "32\n"


def test_a_script_outside_fills_the_volumes_of_the_commands_that_it_starts_inside(jobs: Jobs) -> None:
    for name in ("exp1/data", "exp1/results"):
        (jobs.scratch / name).mkdir(parents=True, exist_ok=True)
        (jobs.scratch / name).chmod(0o777)
    (jobs.scratch / "baseData").write_text("base\n")
    script = f"""#!/bin/sh
#SBATCH --image=docker:busybox:1
#SBATCH --volume={jobs.scratch}/exp1/data:/input
#SBATCH --volume={jobs.scratch}/exp1/results:/output
#SBATCH -c 2
cp {jobs.scratch}/baseData {jobs.scratch}/exp1/data
export OMP_NUM_THREADS=32
shifter sh -c 'cat /input/baseData > /output/result; echo $OMP_NUM_THREADS >> /output/result'
cat {jobs.scratch}/exp1/results/result
"""
    for options in ((), ("--exclusive",)):
        assert jobs.done(script, *options) == "base\n32\n"


def test_the_container_is_ready_with_its_volumes_before_the_batch_script_which_itself_runs_outside(jobs: Jobs) -> None:
    (jobs.scratch / "ready").mkdir(exist_ok=True)
    (jobs.scratch / "ready" / "thing").touch()
    mount = jobs.site.directory / "var" / "udiMount"
    script = f"ls {mount}/mnt; grep ^ID {mount}/etc/os-release; readlink /proc/self/root; command -v srun"
    shown = jobs.done(script, "-N1", *JOIN, f"--volume={jobs.scratch}/ready:/mnt").splitlines()
    assert shown[:3] == ["thing", "ID=busybox", "/"] and shown[3].endswith("/srun")


def test_no_sshd_and_no_ccm_where_the_site_does_not_enable_them(jobs: Jobs) -> None:
    inside = "echo inside; ls -A /opt/udiImage; ls -d /etc/ssh*; ps -o comm | grep '^ss[h]'"
    assert jobs.done(f'srun shifter sh -c "{inside}" 2> /dev/null || true', "-N1", *JOIN) == "inside\n"
    refused = jobs.run("srun", "--ccm", "true")
    assert refused.returncode != 0 and "unrecognized option" in refused.stderr
    for command in ("sbatch", "salloc", "srun"):
        usage = jobs.run(command, "--help").stdout
        assert all(f"--{option}" in usage for option in ("image=", "volume=", "module=", "image-wait"))
        assert "--ccm" not in usage


def test_without_shifter_config_the_configuration_is_the_one_the_plugin_was_made_for(jobs: Jobs) -> None:
    plugin = wlm.install.build(jobs.site.directory / "own", jobs.site.directory / "etc" / "udiRoot.conf")
    plugstack = jobs.cluster.layout.directory / "etc" / "plugstack.conf"
    text = plugstack.read_text()
    plugstack.write_text(f"required {plugin}\n")
    try:
        shown = jobs.srun("-N1", "-w", "n1", *JOIN, *NAMESPACE).strip()
    finally:
        plugstack.write_text(text)
    assert shown == jobs.cluster.on_node("n1", ["readlink", "/proc/1/ns/mnt"]).stdout.strip()


def test_the_exit_status_of_the_task_is_the_jobs(jobs: Jobs) -> None:
    job = jobs.sbatch("shifter sh -c 'exit 7'", "-N1", *JOIN)
    assert jobs.wait(job) == "FAILED"
    assert jobs.facts(job)["ExitCode"] == "7:0"


def test_two_users_one_after_the_other_see_nothing_of_each_other(jobs: Jobs) -> None:
    private = jobs.scratch / "private"
    private.mkdir(exist_ok=True)
    (private / "secret").touch()
    left = "ls /mnt; (while true; do usleep 100000; done) > /dev/null 2>&1 & echo begun"
    assert (
        jobs.srun("-N1", "-w", "n4", *JOIN, f"--volume={private}:/mnt", "shifter", "sh", "-c", left)
        == "secret\nbegun\n"
    )
    script = "id -u; ls /mnt; cat /etc/passwd /var/shifterConfig.json /proc/self/mountinfo; ps; env"
    seen = jobs.srun("-N1", "-w", "n4", *JOIN, "shifter", "sh", "-c", script, uid=BOB)
    assert seen.startswith(f"{BOB}\n")
    assert "secret" not in seen and "private" not in seen and "www-data" not in seen and "usleep" not in seen


@contextmanager
def counted(jobs: Jobs) -> Iterator[list[bytes]]:
    """Puts a forwarder before the gateway, in udiRoot.conf, that collects the requests' first lines."""
    target = urlsplit(jobs.site.gateway)
    seen: list[bytes] = []

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((target.hostname, target.port)) as gateway:
                data = self.request.recv(65536)
                seen.append(data.split(b"\r\n")[0])
                gateway.sendall(data.replace(b"keep-alive", b"close"))
                while part := gateway.recv(65536):
                    self.request.sendall(part)

    conf = jobs.site.directory / "etc" / "udiRoot.conf"
    text = conf.read_text()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        conf.write_text(text.replace(jobs.site.gateway, f"http://127.0.0.1:{server.server_address[1]}"))
        try:
            yield seen
        finally:
            conf.write_text(text)
            server.shutdown()


def test_a_job_asks_the_gateway_once_however_many_nodes_and_steps(jobs: Jobs) -> None:
    with counted(jobs) as requests:
        script = "srun shifter true; srun -n8 shifter true; shifter true; srun --overlap shifter true"
        jobs.done(script, "-N4", *JOIN)
        assert len(requests) == 1 and b"/api/lookup/" in requests[0], requests


def test_a_job_opens_the_image_once_a_node_however_many_steps_and_tasks(jobs: Jobs) -> None:
    image = jobs.site.directory / "images" / f"{identifier(jobs)}.squashfs"
    try:
        with opens(image) as seen:
            jobs.done("srun -n8 shifter true; srun shifter true; shifter true", "-N4", *JOIN)
    except OSError as error:
        lack(f"this kernel does not tell of opens: {error}")
    assert len(seen) == 4
