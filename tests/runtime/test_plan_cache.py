"""A plan is computed once and used again, for an equal request only and while everything that it came from is unchanged."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "strace")]


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        (made.directory / "etc/sub").mkdir()
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    before = dict(made.settings)
    for plan in plans(made):
        plan.unlink()
    yield made
    made.settings = before
    made.configure()
    made.image("tiny")
    made.drop_holds()
    assert made.left() == []


def plans(node: Node) -> list[Path]:
    return sorted((node.directory / "loopMount/plans").glob("*"))


def python_ran(node: Node, *words: str, env: dict[str, str] | None = None, uid: int = NOBODY) -> bool:
    """Whether a start, watched by root, had Python plan it."""
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=execve", "-o", "/dev/stdout", "-u", {NOBODY: "nobody", 1: "daemon"}[uid],
         str(node.shifter), *words], env={"PATH": "/bin", **(env or {})}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return "/python3" in done.stdout


def test_the_second_start_needs_no_python(node: Node) -> None:
    assert python_ran(node, "--image=id:tiny", "true")
    assert not python_ran(node, "--image=id:tiny", "true")


def test_arguments_and_other_variables_do_not_matter(node: Node) -> None:
    assert python_ran(node, "--image=id:tiny", "true")
    assert not python_ran(node, "--image=id:tiny", "echo", "something else", env={"ANY": "thing"})


@pytest.mark.parametrize(
    ("words", "env", "uid"),
    [
        (["--image=id:tiny", "--env=A=1"], {}, NOBODY),
        (["--image=id:tiny", "--volume=/tmp:/mnt"], {}, NOBODY),
        (["--image=id:tiny"], {"SHIFTER_VOLUME": "/tmp:/mnt"}, NOBODY),
        (["--image=id:tiny"], {}, 1),
    ],
)
def test_another_request_has_another_plan(node: Node, words: list[str], env: dict[str, str], uid: int) -> None:
    start(node, "--image=id:tiny", "true")
    assert python_ran(node, *words, "true", env=env, uid=uid)


def start(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """A start by the same user, with the same groups, as `python_ran` has it."""
    return node.start(*words, groups=[NOBODY])


def replace(path: Path, text: str) -> None:
    """As editors do it: a new file in the old one's place."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


CHANGES: dict[str, Callable[[Node], object]] = {
    "udiRoot.conf": lambda node: node.configure(siteEnv="CHANGED=1"),
    "image file": lambda node: node.image("tiny", {"etc/new": "1"}),
    "record of the image": lambda node: replace(
        node.directory / "images/tiny.json", (node.directory / "images/tiny.json").read_text() + " "
    ),
    "passwd": lambda node: replace(node.directory / "etc/passwd", (node.directory / "etc/passwd").read_text() + "\n"),
    "etcPath": lambda node: (node.directory / "etc/extra").write_text("x"),
    "a directory below etcPath": lambda node: (node.directory / "etc/sub/extra").write_text("x"),
    "the program": lambda node: (node.directory / "libexec/shifter/runtime/new").write_text("x"),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_a_plan_is_not_used_when_something_changed(node: Node, what: str) -> None:
    start(node, "--image=id:tiny", "true")
    assert not python_ran(node, "--image=id:tiny", "true")
    CHANGES[what](node)
    assert python_ran(node, "--image=id:tiny", "true")
    assert not python_ran(node, "--image=id:tiny", "true")


def test_an_image_taken_from_the_user_is_not_run_from_a_plan(node: Node) -> None:
    node.image("tiny", public=False, uids=[NOBODY])
    assert start(node, "--image=id:tiny", "true").returncode == 0
    record = node.directory / "images/tiny.json"
    replace(record, record.read_text().replace(str(NOBODY), "1"))
    assert "no image id:tiny" in nodes.only_line(start(node, "--image=id:tiny", "true"))


def test_hosts_is_todays_also_with_a_plan(node: Node) -> None:
    start(node, "--image=id:tiny", "true")
    script = (
        f"mount --bind {node.directory}/hosts /etc/hosts && exec setpriv --reuid {NOBODY} --regid {NOBODY}"
        f" --groups {NOBODY} {node.shifter} --image=id:tiny cat /etc/hosts"
    )
    (node.directory / "hosts").write_text("127.0.0.9 today\n")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "127.0.0.9 today\n"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "owner", "mode", "hard link", "other program"])
def test_a_damaged_or_foreign_plan_is_not_used(node: Node, damage: str) -> None:
    start(node, "--image=id:tiny", "true")
    plan = plans(node)[0]
    content = plan.read_bytes()
    if damage == "cut":
        plan.write_bytes(content[:30])
    elif damage == "flip":
        plan.write_bytes(content.replace(b"tiny", b"tinz", 1))
    elif damage == "empty":
        plan.write_bytes(b"")
    elif damage == "owner":
        os.chown(plan, NOBODY, NOBODY)
    elif damage == "mode":
        plan.chmod(0o666)
    elif damage == "hard link":
        os.link(plan, node.directory / "link")
    else:
        plan.write_bytes(content.replace(b"plan\0", b"plam\0", 1))
    assert python_ran(node, "--image=id:tiny", "true")
    (node.directory / "link").unlink(missing_ok=True)


def test_a_plan_that_fails_is_forgotten(node: Node) -> None:
    data = nodes.public(node.directory / "volatile")
    words = ["--image=id:tiny", f"--volume={data}:/data", "cat", "/data"]
    start(node, *words)
    data.rmdir()
    data.write_text("now a file\n")
    assert start(node, *words).returncode == 1
    assert start(node, *words).stdout == "now a file\n"


def test_nobody_but_root_can_see_plans(node: Node) -> None:
    start(node, "--image=id:tiny", "true")
    status = (node.directory / "loopMount/plans").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)


def test_a_site_can_do_without(node: Node) -> None:
    node.configure(planCache="0")
    start(node, "--image=id:tiny", "true")
    assert plans(node) == []
