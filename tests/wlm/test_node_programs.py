"""The small parts of the node's programs: command line, state files, children, the memory cgroup, sealed secrets."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.udiroot import Udiroot, parse
from tests.requires import requires, requires_root
from tests.runtime.munge_daemon import running
from wlm import child, memory_cgroup, sealed, sshd
from wlm.arguments import ArgumentsInvalid, number
from wlm.arguments import parse as parse_arguments
from wlm.failure import NodeFault
from wlm.main import main
from wlm.state import State

MEMORY = "/sys/fs/cgroup/memory"


def conf(directory: Path) -> Udiroot:
    return parse(
        f"udiMount={directory}/udi\nloopMount={directory}/loop\nimagePath=/images\nsystem=test\n", "udiRoot.conf"
    )


def test_arguments_have_values_or_are_flags_and_strange_ones_are_named() -> None:
    found = parse_arguments(["--job", "7", "--ccm", "--job", "8"], ("job",), ("ccm",))
    assert found == {"job": "8", "ccm": "1"}
    assert number(found, "job") == 8
    for argv, reason in (
        (["--nosuch", "1"], "known are --job"),
        (["job"], "unknown argument 'job'"),
        (["--job"], "needs a value"),
    ):
        with pytest.raises(ArgumentsInvalid, match=reason):
            parse_arguments(argv, ("job",))
    for text in ("", "-1", "1x", "²"):
        with pytest.raises(ArgumentsInvalid, match="--job needs a whole number"):
            number({"job": text}, "job")


def test_a_wrong_command_line_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nosuch"]) == 1
    assert main(["prolog", "--job", "1"]) == 1
    assert main(["--help"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == lines[2] and lines[0].startswith("usage: shifter-wlm submit|prolog|epilog|extern")
    assert lines[1] == "shifter-wlm prolog: argument --config is missing"


def test_state_files_tell_what_was_begun_and_end_with_the_job(tmp_path: Path) -> None:
    state, other = State(conf(tmp_path), 7), State(conf(tmp_path), 8)
    state.begin(33)
    state.write("failed", "two\nlines")
    state.ready({"SHIFTER_IMAGE": "x", "SHIFTER_VOLUME": "/a:/b;/c:/d=e"})
    assert state.read("failed") == "two lines"
    assert state.read("user") == "33"
    assert state.variables() == {"SHIFTER_IMAGE": "x", "SHIFTER_VOLUME": "/a:/b;/c:/d=e"}
    assert (other.others(), state.others()) == ([7], [])
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "loop" / "wlm").iterdir()} == {0o600}
    state.begin(33)
    assert (state.read("failed"), state.variables()) == ("", {})
    state.end()
    state.end()
    assert list((tmp_path / "loop" / "wlm").iterdir()) == []


def test_a_childs_complaint_status_and_limit_of_time() -> None:
    assert child.run(["/bin/sh", "-c", "echo out; echo one >&2; echo two >&2; exit 3"], {}, 10) == (3, "one\ntwo\n")
    assert child.run(["/bin/sh", "-c", "kill -9 $$"], {}, 10)[0] == -9
    assert child.run(["/usr/bin/env"], {"ONLY": "1"}, 10) == (0, "")
    assert child.last_line("shown\n last \n", "") == "last"
    with pytest.raises(child.ChildFailed, match="not done after"):
        child.run(["/bin/sleep", "60"], {}, 0.05)
    with pytest.raises(child.ChildFailed, match="/nowhere: No such file"):
        child.run(["/nowhere"], {}, 10)


def test_a_program_of_ours_is_called_with_its_complaint_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def program(argv: list[str], configuration: str) -> int:
        os.write(2, f"{argv[0]} {configuration}\n".encode())
        os.chdir("/")
        return 2

    before = os.getcwd()
    assert child.call(program, ["a"], "conf") == (2, "a conf\n")
    assert os.getcwd() == before
    assert capfd.readouterr().err == ""


@requires_root
@pytest.mark.skipif(not os.path.exists(f"{MEMORY}/memory.usage_in_bytes"), reason="no cgroup v1 memory hierarchy here")
def test_memory_cgroup_follows_slurms_layout_limits_and_goes() -> None:
    uid, job = 4_000_000 + os.getpid(), os.getpid()
    path = Path(f"{MEMORY}/shifter/uid_{uid}/job_{job}")
    memory_cgroup.make(MEMORY, uid, job, 64)
    memory_cgroup.make(MEMORY, uid, job, 64)
    assert (path / "memory.limit_in_bytes").read_text().strip() == str(64 << 20)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        memory_cgroup.enter(MEMORY, uid, job, sleeper.pid)
        assert (path / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
        sleeper.kill()
    memory_cgroup.remove(MEMORY, job)
    memory_cgroup.remove(MEMORY, job)
    assert not path.parent.exists()


def test_without_a_memory_cgroup_nothing_is_made_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory_cgroup.make(str(tmp_path), 1, 2, 3)
    memory_cgroup.enter(str(tmp_path), 1, 2, os.getpid())
    memory_cgroup.remove(str(tmp_path), 2)
    assert list(tmp_path.iterdir()) == []
    assert f"memory_cgroup={tmp_path}: no memory cgroup is mounted there" in capsys.readouterr().err


def test_on_a_unified_hierarchy_the_controller_is_handed_down(tmp_path: Path) -> None:
    # The kernel makes these files with each directory; here they lie ready where the code writes.
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    for part in ("", "shifter", "shifter/uid_5"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "cgroup.subtree_control").write_text("")
    memory_cgroup.make(str(tmp_path), 5, 6, 2)
    assert (tmp_path / "shifter/uid_5/job_6/memory.max").read_text() == str(2 << 20)
    assert {file.read_text() for file in tmp_path.rglob("cgroup.subtree_control")} == {"+memory"}


@requires_root
def test_an_epilog_that_cannot_remove_the_cgroup_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "udiRoot.conf"
    configuration.write_text(f"udiMount={tmp_path}/udi\nloopMount={tmp_path}/loop\nimagePath=/images\nsystem=test\n")
    for name in ("udi", "loop"):
        (tmp_path / name).mkdir(mode=0o755)
    State(conf(tmp_path), 6).begin(5)
    busy = (
        tmp_path / "cgroup" / "shifter" / "uid_5" / "job_6" / "busy"
    )  # a directory that is not empty, as one with processes
    busy.mkdir(parents=True)
    argv = ["epilog", "--config", str(configuration), "--job", "6", "--memory-cgroup", str(tmp_path / "cgroup")]
    with environment_kept():
        assert main(argv) == 1
        assert capsys.readouterr().out.startswith("shifter: epilog: ")
        assert State(conf(tmp_path), 7).others() == [6]
        busy.rmdir()
        assert main(argv) == 0
    assert State(conf(tmp_path), 7).others() == []
    assert not (tmp_path / "cgroup" / "shifter").exists()


@contextmanager
def environment_kept() -> Iterator[None]:
    """The programs clear their environment, which here is that of all tests."""
    kept = dict(os.environ)
    try:
        yield
    finally:
        os.environ.update(kept)


@pytest.fixture
def munge_socket() -> Iterator[str]:
    with running() as daemon:
        yield str(daemon.socket)


@requires("munged")
@requires_root
def test_a_sealed_secret_is_for_root_and_says_whose_it_is(munge_socket: str) -> None:
    credential = sealed.seal(b"secret\0", munge_socket)
    assert sealed.unseal(credential, munge_socket) == (b"secret\0", 0)
    assert sealed.unseal(credential, munge_socket) == (b"secret\0", 0), "a job that starts again opens it again"
    asked = subprocess.run(
        ["unmunge", "--socket", munge_socket],
        input=credential,
        capture_output=True,
        text=True,
        user=33,
        group=33,
        check=False,
    )
    assert asked.returncode != 0 and "secret" not in asked.stdout
    with pytest.raises(ValueError, match="munge"):
        sealed.unseal("MUNGE:nonsense:", munge_socket)
    with pytest.raises(NodeFault, match="is munged running"):
        sealed.seal(b"x", "/nowhere/socket")


def test_sshd_config_admits_one_user_with_one_key() -> None:
    text = sshd.sshd_config("alice", 1204, ["10.0.0.7"], ["PATH=/bin", 'X="quoted"', "A=b c", "nothing"])
    for line in (
        "Port 1204", "ListenAddress 10.0.0.7", "AllowUsers alice", "PermitRootLogin no", "PasswordAuthentication no",
        "KbdInteractiveAuthentication no", "AuthorizedKeysFile /opt/udiImage/job/authorized_keys", 'SetEnv "PATH=/bin" "A=b c"',
    ):  # fmt: skip
        assert line in text.splitlines()


def test_ssh_config_is_for_the_jobs_nodes_alone_and_checks_the_host() -> None:
    text = sshd.ssh_config("alice", 1204, ["n1", "n2"])
    assert text.splitlines()[0] == "Host n1 n2"
    assert "    StrictHostKeyChecking yes" in text.splitlines()


def test_munge_socket_is_the_one_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_conf = tmp_path / "slurm.conf"
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    assert sshd.munge_socket() is None
    slurm_conf.write_text("ClusterName=x\nAuthInfo=socket=/run/m.sock,cred_expire=5\n")
    assert sshd.munge_socket() == "/run/m.sock"
