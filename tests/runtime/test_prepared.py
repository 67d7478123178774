"""The prepared environment: setupRoot, the starts that join it, unsetupRoot; once, twice, half-done, and in use."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc")]


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        made.image("other")
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    before = dict(made.settings)
    yield made
    made.settings = before
    made.configure()
    done = program(made, "unsetupRoot")
    assert (done.returncode, done.stderr) == (0, "")
    made.drop_holds()
    assert made.left() == []


def program(node: Node, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(node.directory / "bin" / name), *words], capture_output=True, text=True, check=False)


def prepare(node: Node, *words: str) -> None:
    done = program(node, "setupRoot", *words)
    assert (done.returncode, done.stderr) == (0, "")


def steps(node: Node, *words: str) -> list[str]:
    done = node.start(*words, "--plan", "true")
    assert done.returncode == 0, done.stderr
    return [line.split()[1] for line in done.stdout.splitlines()]


def mounted(node: Node) -> list[str]:
    place = f"{node.directory}/udiMount"
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(place)]


def test_a_start_with_the_same_request_joins_and_mounts_nothing(node: Node) -> None:
    data = nodes.public(node.directory / "data")
    (data / "note").write_text("volume\n")
    prepare(node, "-u", "nobody", "-U", str(NOBODY), "-G", str(NOBODY), "-v", f"{data}:/data", "id", "tiny")
    words = ["--image=id:tiny", f"--volume={data}:/data"]
    assert steps(node, *words)[:2] == ["join", "drop"]
    done = node.start(*words, "sh", "-c", "cat /etc/os-release /data/note; id; readlink /proc/self/ns/mnt")
    assert done.stdout.splitlines()[:2] == ["NAME=tiny", "volume"]
    assert done.stdout.splitlines()[3] == os.readlink("/proc/self/ns/mnt")


@pytest.mark.parametrize(
    "words",
    [["--image=id:other"], ["--image=id:tiny", "--volume=/tmp:/data"], ["--image=id:tiny", "--module=extra"]],
)
def test_a_start_with_another_request_gets_its_own(node: Node, words: list[str]) -> None:
    node.configure(module_extra_siteEnv="EXTRA=1")
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    assert "join" not in steps(node, *words)
    assert node.start(*words, "true").returncode == 0
    assert steps(node, "--image=id:tiny")[0] == "join"


def test_another_user_does_not_join(node: Node) -> None:
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    done = node.start("--image=id:tiny", "--plan", "true", uid=1)
    assert "join" not in done.stdout
    assert node.start("--image=id:tiny", "id", "-u", uid=1).stdout == "1\n"


def test_what_a_joined_process_may_do(node: Node) -> None:
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    done = node.start(
        "--image=id:tiny", "sh", "-c", "grep -E 'Cap|NoNewPrivs' /proc/self/status || cat /proc/self/status"
    )
    fields = dict(line.split(":\t") for line in done.stdout.splitlines() if line.startswith(("Cap", "NoNew")))
    assert {value for name, value in fields.items() if name.startswith("Cap")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_done_twice_it_does_nothing_and_for_another_request_it_replaces(node: Node) -> None:
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    before = mounted(node)
    again = program(node, "setupRoot", "-V", "-U", str(NOBODY), "id", "tiny")
    assert again.stderr.endswith("is prepared already\n")
    assert mounted(node) == before
    prepare(node, "-U", str(NOBODY), "id", "other")
    assert node.start("--image=id:other", "cat", "/etc/os-release").stdout == "NAME=other\n"
    assert len(mounted(node)) == len(before)


def test_the_record_is_in_the_form_that_existing_tools_read(node: Node) -> None:
    prepare(
        node,
        "-U",
        str(NOBODY),
        "-v",
        "/tmp/:/b;/tmp:/a:ro",
        "-N",
        "n1/2 n2/1",
        "-s",
        "ssh-ed25519 AAAA me",
        "id",
        "tiny",
    )
    root = node.directory / "udiMount"
    assert json.loads((root / "var/shifterConfig.json").read_text()) == {
        "identifier": "tiny", "user": "nobody", "volMap": "/tmp:/a:ro;/tmp:/b", "modules": "",
    }  # fmt: skip
    assert (root / "var/hostsfile").read_text() == "n1\nn1\nn2\n"
    assert (root / "opt/udiImage/etc/user_auth.pub").read_text() == "ssh-ed25519 AAAA me\n"


def test_the_next_job_with_the_same_image_gets_its_own_hosts_and_key_though_no_epilog_ran(node: Node) -> None:
    for job in (1, 2, 1):
        prepare(node, "-u", "nobody", "-N", f"n{job}/1", "-s", f"key {job}", "id", "tiny")
        root = node.directory / "udiMount"
        assert (root / "var/hostsfile").read_text() == f"n{job}\n"
        assert (root / "opt/udiImage/etc/user_auth.pub").read_text() == f"key {job}\n"
        assert steps(node, "--image=id:tiny")[0] == "join"


def test_the_hosts_file_of_a_job_on_nine_thousand_nodes(node: Node) -> None:
    hosts = [f"nid{number:05}" for number in range(9000)]
    prepare(node, "-u", "nobody", "-N", " ".join(f"{host}/64" for host in hosts), "id", "tiny")
    place = node.directory / "udiMount/var/hostsfile"
    assert place.read_text() == "".join(f"{host}\n" * 64 for host in hosts)
    assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (0, 0o644)
    assert not list((node.directory / "loopMount").glob("setup.text*"))


@pytest.mark.parametrize("count", ["99999999999", "999999999", "-1", "x", "\u0663"])
def test_a_number_of_tasks_that_cannot_be_is_one_line_and_leaves_nothing(node: Node, count: str) -> None:
    done = program(node, "setupRoot", "-u", "nobody", "-N", f"n1/{count}", "id", "tiny")
    assert done.returncode == 1
    assert done.stderr.startswith("setupRoot: -N")
    assert done.stderr.count("\n") == 1
    assert not (node.directory / "udiMount/var").exists()


def test_injected_files_keep_their_owner_and_mode(node: Node) -> None:
    given = nodes.public(node.directory / "given")
    (given / "etc/ssh").mkdir(parents=True)
    (given / "etc/ssh/ssh_config").write_text("Port 1204\n")
    (given / "opt/udiImage/job").mkdir(parents=True)
    key = given / "opt/udiImage/job/key"
    key.write_text("secret\n")
    key.chmod(0o600)
    os.chown(key, NOBODY, NOBODY)
    prepare(node, "-U", str(NOBODY), "--inject", str(given), "id", "tiny")
    done = node.start("--image=id:tiny", "cat", "/etc/ssh/ssh_config", "/opt/udiImage/job/key")
    assert done.stdout == "Port 1204\nsecret\n"
    status = (node.directory / "udiMount/opt/udiImage/job/key").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (NOBODY, 0o600)


def test_everything_is_taken_down(node: Node) -> None:
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    assert program(node, "unsetupRoot").returncode == 0
    assert mounted(node) == []
    assert "join" not in steps(node, "--image=id:tiny")
    assert program(node, "unsetupRoot").returncode == 0


def test_a_half_done_environment_is_taken_down_too(node: Node) -> None:
    place = node.directory / "udiMount"
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    (place / "proc").mkdir()
    subprocess.run(["mount", "-t", "proc", "none", str(place / "proc")], check=True)
    assert program(node, "unsetupRoot").returncode == 0
    assert mounted(node) == []
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    assert len(mounted(node)) > 3


def test_what_is_in_use_is_named_and_detached(node: Node) -> None:
    prepare(node, "-U", str(NOBODY), "id", "tiny")
    node.start("--image=id:tiny", "true")
    with subprocess.Popen(
        [str(node.shifter), "--image=id:tiny", "sh", "-c", "echo ready; cat"],
        user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        done = program(node, "unsetupRoot")
        assert done.returncode == 2
        assert "was in use: by process " in done.stderr
        assert mounted(node) == []
        process.stdin.close()
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-U", "65534", "id", "nothing"], 1, "no image id:nothing"),
        (["-U", "65534", "-v", "/root:/mnt", "id", "tiny"], 1, "/root: you may not read it"),
        (["-U", "65534", "-v", "/tmp:/etc", "id", "tiny"], 1, "/etc is the system's"),
        (["-U", "65534", "-m", "fast", "id", "tiny"], 1, "module 'fast' is not known"),
        (["-U", "4242", "id", "tiny"], 1, "user 4242 has no passwd entry"),
        (["-U", "0", "id", "tiny"], 1, "not the number of a user who is not root"),
        (["-u", "daemon", "-U", "65534", "id", "tiny"], 1, "uid 65534 is nobody, not daemon"),
        (["-U", "65534", "-N", "n1/x", "id", "tiny"], 1, "write HOST/TASKS"),
        (["-U", "65534", "tiny"], 1, "name an image"),
        (["--what"], 1, "option --what is not known"),
        (["-U", "65534", "id", "broken"], 2, "not a sound squashfs file"),
    ],
)
def test_what_cannot_be_prepared_says_why_and_leaves_nothing(
    node: Node, words: list[str], status: int, said: str
) -> None:
    node.image("broken")
    (node.directory / "images/broken.squashfs").write_bytes(b"x" * 4096)
    done = program(node, "setupRoot", *words)
    assert done.returncode == status, done
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert mounted(node) == []


def test_mounts_of_the_host_survive_where_they_are_shared(node: Node) -> None:
    script = (
        f"mount -t tmpfs shared {node.directory}/udiMount/../keep && "
        f"{node.directory}/bin/setupRoot -U {NOBODY} id tiny && {node.directory}/bin/unsetupRoot && "
        f"grep -c 'shared {node.directory}/keep' /proc/self/mounts; grep -c ' /dev/pts ' /proc/self/mounts"
    )
    (node.directory / "keep").mkdir()
    node.configure(siteFs=f"{node.directory}/keep:/keep:rec")
    before = Path("/proc/self/mounts").read_text().count(" /dev/pts ")
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "shared", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1", str(before)], done.stderr


def test_only_root_prepares(node: Node) -> None:
    for name in ("setupRoot", "unsetupRoot"):
        done = subprocess.run(
            [str(node.directory / "bin" / name)], user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "needs root" in done.stderr


def test_the_plan_of_an_environment_is_kept_while_it_holds(node: Node) -> None:
    data = nodes.public(node.directory / "kept")
    words = ["-U", str(NOBODY), "-v", f"{data}:/data", "id", "tiny"]
    prepare(node, *words)
    assert list((node.directory / "loopMount/plans").glob("setup-*"))
    before = mounted(node)
    assert program(node, "unsetupRoot").returncode == 0
    prepare(node, *words)
    assert mounted(node) == before
    assert steps(node, "--image=id:tiny", f"--volume={data}:/data")[0] == "join"
    assert program(node, "unsetupRoot").returncode == 0
    node.configure(siteEnv="CHANGED=1")
    prepare(node, *words)
    assert node.start("--image=id:tiny", f"--volume={data}:/data", "sh", "-c", "echo $CHANGED").stdout == "1\n"
    assert program(node, "unsetupRoot").returncode == 0
    data.rmdir()
    done = program(node, "setupRoot", *words)
    assert done.returncode == 1
    assert f"{data}: No such file or directory" in done.stderr.splitlines()[-1]
    assert mounted(node) == []
    for path in (node.directory / "loopMount/plans").glob("setup-*"):
        path.unlink()
