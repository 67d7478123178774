"""What a user sees of a start: the image's files, volumes, the environment, the working directory, the exit status."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc")]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        made.image(
            "entry",
            {"bin/say": "#!/bin/sh\necho said \"$@\"\n", "work/": ""},
            entrypoint=["/bin/say", "hello"], cmd=["you"], workdir="/work", env=["PATH=/bin", "COLOUR=red", "EMPTY="],
        )  # fmt: skip
        yield made


def test_a_command_sees_the_files_of_the_image_and_its_status_is_ours(node: Node) -> None:
    done = node.start("--image=id:tiny", "cat", "/etc/os-release")
    assert (done.returncode, done.stdout, done.stderr) == (0, "NAME=tiny\n", "")
    assert node.start("--image=id:tiny", "sh", "-c", "exit 7").returncode == 7


def test_a_command_that_is_not_in_the_image_exits_127(node: Node) -> None:
    done = node.start("--image=id:tiny", "nothing-like-it")
    assert done.returncode == 127
    assert "cannot run nothing-like-it" in done.stderr


def test_a_command_is_found_as_execvp_finds_it(node: Node) -> None:
    """By PATH, in order, past what may not be executed; and a file that is no program and names none is the shell's to run."""
    node.image(
        "scripts",
        {"b/tool": "echo tool of b: $0 $*\n", "bin/plain": "echo plain: $*\n", "c/other": "#!/none\n"},
    )
    at = node.directory / "images"
    assert node.start("--image=id:scripts", "/bin/plain", "1", "2 3").stdout == "plain: 1 2 3\n"
    assert node.start("--image=id:scripts", "plain", "x").stdout == "plain: x\n"
    path = "--env=PATH=/nowhere:/etc/os-release:/b:/bin"
    assert node.start("--image=id:scripts", path, "tool", "y").stdout == "tool of b: /b/tool y\n"
    assert node.start("--image=id:scripts", "--env=PATH=", "sh", "-c", "echo $0").stdout == "sh\n"
    broken = node.start("--image=id:scripts", "--env=PATH=/c:/bin", "other")
    assert (broken.returncode, broken.stdout) == (127, "")
    assert broken.stderr.startswith("shifter: cannot run other: No such file or directory")
    for suffix in ("squashfs", "json"):
        (at / f"scripts.{suffix}").unlink()


@requires("squashfuse_ll")
@pytest.mark.parametrize("mode", [0o4755, 0o755], ids=["setuid", "in a user namespace"])
def test_variables_of_the_hosts_c_library_do_not_reach_the_container(node: Node, mode: int) -> None:
    """As with any setuid program of glibc's, whatever the launcher is linked with; those that are asked for do."""
    host = {
        "LD_LIBRARY_PATH": "/opt/host",
        "LD_PRELOAD": "/x.so",
        "TMPDIR": "/scratch",
        "GLIBC_TUNABLES": "x=1",
        "KEPT": "1",
    }
    node.shifter.chmod(mode)
    if mode == 0o755:
        node.open_fuse()
    try:
        seen = node.start("--image=id:tiny", "-e", "LD_LIBRARY_PATH=/in", "env", env=host).stdout.splitlines()
        assert {"KEPT=1", "LD_LIBRARY_PATH=/in"} <= set(seen)
        assert not [line for line in seen if line.startswith(("LD_PRELOAD", "TMPDIR", "GLIBC_TUNABLES"))]
    finally:
        node.shifter.chmod(0o4755)
        node.fuse = None


def test_standard_input_reaches_the_command(node: Node) -> None:
    assert node.start("--image=id:tiny", "cat", stdin="through").stdout == "through"


def test_options_end_at_the_first_word_that_is_none(node: Node) -> None:
    assert node.start("--image=id:tiny", "echo", "--image=x", "-v", "--").stdout == "--image=x -v --\n"


def test_a_volume_is_written_to_and_read_back(node: Node) -> None:
    shared = nodes.public(node.directory / "shared")
    shared.chmod(0o1777)
    done = node.start(
        "--image=id:tiny", f"--volume={shared}:/mnt", "sh", "-c", "echo from inside > /mnt/note; cat /mnt/note"
    )
    assert done.stdout == "from inside\n"
    assert (shared / "note").read_text() == "from inside\n"
    assert (shared / "note").stat().st_uid == NOBODY


def test_a_read_only_volume_cannot_be_written(node: Node) -> None:
    shared = nodes.public(node.directory / "shared-ro")
    shared.chmod(0o1777)
    done = node.start("--image=id:tiny", "-V", f"{shared}:/mnt:ro", "touch", "/mnt/note")
    assert "Read-only file system" in done.stderr
    assert not list(shared.iterdir())


@pytest.mark.parametrize(
    "target", ["/mnt/", "/new", "/new/at/any/depth", "/usr/lib/deep/er", "/opt/mine", "/var/tmp/../mnt2"]
)
def test_a_mount_point_need_not_be_in_the_image(node: Node, target: str) -> None:
    shared = nodes.public(node.directory / "source")
    (shared / "file").write_text("here\n")
    done = node.start(
        "--image=id:tiny",
        "-V",
        f"{shared}:{target}",
        "sh",
        "-c",
        f"cat {target}/file; ls /bin/cat; cat /etc/os-release",
    )
    if ".." in target:
        assert "has '..'" in nodes.only_line(done)
    else:
        assert (done.stdout, done.stderr) == ("here\n/bin/cat\nNAME=tiny\n", "")


def test_a_mount_point_in_a_directory_of_many_entries(node: Node) -> None:
    node.image("crowd", {f"usr/share/entry{number}": str(number) for number in range(300)})
    shared = nodes.public(node.directory / "source-crowd")
    (shared / "file").write_text("here\n")
    done = node.start(
        "-i",
        "id:crowd",
        "-V",
        f"{shared}:/usr/share/new/place",
        "sh",
        "-c",
        "cat /usr/share/new/place/file; ls /usr/share",
    )
    assert done.stdout.splitlines()[0] == "here"
    assert len(done.stdout.splitlines()) == 1 + 300 + 1
    plan = node.start("-i", "id:crowd", "-V", f"{shared}:/usr/share/new/place", "--plan", "true").stdout
    assert "overlay    target=/usr/share" in plan


def test_a_file_can_be_a_volume(node: Node) -> None:
    source = nodes.public(node.directory / "source2") / "one"
    source.write_text("one file\n")
    done = node.start("--image=id:tiny", "-V", f"{source}:/data/renamed", "cat", "/data/renamed")
    assert done.stdout == "one file\n"


def test_links_in_a_target_are_followed_inside_the_image_only(node: Node) -> None:
    node.image("linked", {"data": "->/usr/lib", "out": "->../../../../../../etc/passwd", "usr/lib/there": "x"})
    shared = nodes.public(node.directory / "source3")
    (shared / "file").write_text("here\n")
    done = node.start(
        "--image=id:linked", "-V", f"{shared}:/data/new", "sh", "-c", "ls /usr/lib; cat /usr/lib/new/file"
    )
    assert done.stdout == "new\nthere\nhere\n"
    refused = node.start("--image=id:linked", "-V", f"{shared}:/out", "true")
    assert "/etc is the system's" in nodes.only_line(refused)


def test_the_environment_is_built_in_the_documented_order(node: Node) -> None:
    variables = nodes.public(node.directory / "variables") / "file"
    variables.write_text('# comment\nFROM_FILE=file\nCOLOUR=file\n\nQUOTED="as it stands"\n')
    done = node.start(
        "--image=id:entry", "--env-file", str(variables), "--env", "COLOUR=blue", "-e", "NOTHING=", "env",
        env={"COLOUR": "host", "HOST_ONLY": "1"},
    )  # fmt: skip
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["COLOUR"] == "blue"
    assert found["FROM_FILE"] == "file"
    assert found["QUOTED"] == '"as it stands"'
    assert found["NOTHING"] == found["EMPTY"] == ""
    assert found["HOST_ONLY"] == "1"
    assert found["SHIFTER_IMAGE"] == "entry"
    assert found["SHIFTER_IMAGEREQUEST"] == "id:entry"


def test_clearenv_leaves_the_images_variables_only(node: Node) -> None:
    done = node.start("--image=id:entry", "-E", "env", env={"SECRET": "x"})
    assert sorted(line.split("=")[0] for line in done.stdout.splitlines()) == [
        "COLOUR", "EMPTY", "PATH", "SHIFTER_IMAGE", "SHIFTER_IMAGEREQUEST",
    ]  # fmt: skip


def test_variables_can_be_kept_and_removed_by_pattern(node: Node) -> None:
    host = {"SLURM_JOB_ID": "1", "SLURM_X": "2", "SECRET": "3"}
    kept = node.start("--image=id:entry", "--keep-env=SLURM_*", "env", env=host).stdout
    assert "SLURM_JOB_ID=1" in kept
    assert "SECRET" not in kept
    removed = node.start("--image=id:entry", "--unset-env=SLURM_*,COLOUR", "env", env=host).stdout
    assert "SLURM" not in removed
    assert "COLOUR" not in removed
    assert "SECRET=3" in removed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--entrypoint"], "said hello you\n"),
        (["--entrypoint", "me", "too"], "said hello me too\n"),
        (["--entrypoint=/bin/echo", "x"], "x\n"),
        (["--entrypoint=/bin/say"], "said\n"),
        (["--entry", "a"], "said hello a\n"),
        (["echo", "plain"], "plain\n"),
    ],
)
def test_the_entry_point(node: Node, words: list[str], said: str) -> None:
    assert node.start("--image=id:entry", *words).stdout == said


def test_no_command_is_a_shell(node: Node) -> None:
    assert node.start("--image=id:tiny", stdin="echo shell $0\n").stdout == "shell /bin/sh\n"


def test_the_working_directory_is_the_callers_the_images_or_the_one_named(node: Node) -> None:
    assert node.start("--image=id:entry", "pwd", cwd="/tmp").stdout == "/tmp\n"
    assert node.start("--image=id:entry", "--workdir", "pwd", cwd="/tmp").stdout == "/work\n"
    assert node.start("--image=id:entry", "--workdir=/usr", "pwd").stdout == "/usr\n"
    elsewhere = node.start("--image=id:entry", "pwd", cwd="/usr/share")
    assert elsewhere.stdout == "/\n"
    assert elsewhere.stderr.startswith("shifter: warning: /usr/share: not in the container")
    assert "no working directory" in nodes.only_line(node.start("--image=id:tiny", "--workdir", "pwd"))
    assert "/nowhere" in nodes.only_line(node.start("--image=id:tiny", "--workdir=/nowhere", "pwd"))


def test_the_user_is_who_they_are_and_root_is_nobody(node: Node) -> None:
    done = node.start("--image=id:tiny", "sh", "-c", "id; cat /etc/passwd /etc/group", groups=[50])
    assert done.stdout == (
        f"uid={NOBODY}(nobody) gid={NOBODY}(nogroup) groups=50(staff)\n"
        f"nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/bin/sh\nnogroup:x:{NOBODY}:nobody\nstaff:x:50:nobody\n"
    )


@pytest.mark.parametrize(
    ("variables", "words", "name"),
    [
        ({"SHIFTER": "id:tiny"}, [], "tiny"),
        ({"SHIFTER_IMAGE": "tiny", "SHIFTER_IMAGETYPE": "id"}, [], "tiny"),
        ({"SLURM_SPANK_SHIFTER_IMAGE": "tiny", "SLURM_SPANK_SHIFTER_IMAGETYPE": "id"}, [], "tiny"),
        ({"SHIFTER": "id:tiny", "SHIFTER_IMAGE": "entry", "SHIFTER_IMAGETYPE": "id"}, [], "tiny"),
        ({"SHIFTER_IMAGE": "tiny", "SHIFTER_IMAGETYPE": "id", "SLURM_SPANK_SHIFTER_IMAGE": "entry"}, [], "tiny"),
        ({"SHIFTER": "id:entry"}, ["--image=id:tiny"], "tiny"),
        (
            {"SHIFTER_IMAGE": "tiny", "SHIFTER_IMAGETYPE": "id", "SHIFTER_IMAGEREQUEST": "docker:a:b"},
            ["--image=a:b"],
            "tiny",
        ),
    ],
)
def test_where_the_image_is_named(node: Node, variables: dict[str, str], words: list[str], name: str) -> None:
    assert node.start(*words, "cat", "/etc/os-release", env=variables).stdout == f"NAME={name}\n"


def test_volumes_of_the_environment_give_way_to_the_command_lines(node: Node) -> None:
    one, two = nodes.public(node.directory / "v1"), nodes.public(node.directory / "v2")
    (one / "name").write_text("one\n")
    (two / "name").write_text("two\n")
    for variable in ("SHIFTER_VOLUME", "SLURM_SPANK_SHIFTER_VOLUME"):
        job = {variable: f"{one}:/one;{two}:/both"}
        assert node.start("-i", "id:tiny", "cat", "/one/name", "/both/name", env=job).stdout == "one\ntwo\n"
        over = node.start("-i", "id:tiny", "-V", f"{one}:/both", "sh", "-c", "cat /both/name; ls -d /one", env=job)
        assert over.stdout == "one\n"


def test_a_plan_is_printed_and_nothing_is_run(node: Node) -> None:
    done = node.start("--image=id:tiny", "--plan", "touch", "/tmp/shifter-plan-must-not-run")
    assert done.returncode == 0
    verbs = [line.split()[1] for line in done.stdout.splitlines()]
    assert verbs[:2] == ["image", "begin"]
    assert verbs[-1] == "exec"
    assert verbs.index("pivot") < verbs.index("drop") < verbs.index("chdir")
    assert not Path("/tmp/shifter-plan-must-not-run").exists()
    assert '"step": "drop"' in node.start("--image=id:tiny", "--plan", "--json", "true").stdout


def test_help_and_version_need_no_configuration_and_no_privilege(node: Node) -> None:
    assert node.start("--help").stdout.startswith("usage: shifter")
    assert node.start("--version").stdout.startswith("shifter ")
    os.chmod(node.shifter, 0o755)
    try:
        assert node.start("--help").returncode == 0
    finally:
        os.chmod(node.shifter, 0o4755)


def test_a_start_leaves_nothing_behind(node: Node) -> None:
    node.drop_holds()
    node.configure(holdLinger="0")
    assert node.start("--image=id:tiny", "true").returncode == 0
    assert node.left() == []
