import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime import munge
from runtime.install import real_interpreter
from runtime.munge import MungeError, default_socket, encode
from tests.requires import requires, requires_root
from tests.runtime.munge_daemon import MungeDaemon

pytestmark = [requires("munged", "unmunge"), requires_root]


@pytest.mark.parametrize("payload", [b"", b"a", b'{"authorized_locations": {"default": "me:pass:word"}}', b"x" * 5000])
def test_a_credential_carries_the_payload_and_who_made_it(munged: MungeDaemon, payload: bytes) -> None:
    opened = munged.open(encode(payload, munged.socket))
    assert (opened.payload, opened.uid) == (payload, os.getuid())


def test_two_credentials_over_the_same_payload_differ_so_that_neither_is_a_replay(munged: MungeDaemon) -> None:
    assert encode(b"", munged.socket) != encode(b"", munged.socket)


def test_a_credential_of_an_unprivileged_user_names_that_user(munged: MungeDaemon, public_directory: Path) -> None:
    shutil.copyfile(munge.__file__, public_directory / "munge.py")  # where that user can read it
    code = f"from munge import encode; print(encode(b'hello', {str(munged.socket)!r}))"
    done = subprocess.run(
        [real_interpreter(), "-c", code], user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
        cwd=public_directory, env={},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = munged.open(done.stdout.strip())
    assert (opened.uid, opened.gid, opened.payload) == (65534, 65534, b"hello")


def test_without_a_daemon_the_error_names_the_socket_and_asks_for_munged(tmp_path: Path) -> None:
    with pytest.raises(MungeError, match=r'munge: .*"/.*/absent".*; is munged running at /.*/absent\?$'):
        encode(b"", tmp_path / "absent")


def test_the_environment_names_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNGE_SOCKET", "/run/site/munge.socket")
    assert default_socket() == "/run/site/munge.socket"
    monkeypatch.setenv("MUNGE_SOCKET", "")
    assert default_socket() is None
