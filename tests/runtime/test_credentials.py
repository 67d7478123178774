import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime import credentials
from runtime.credentials import CredentialsError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_nothing_saved_is_no_credential() -> None:
    assert credentials.read("mycluster") == {}


def test_a_saved_credential_is_a_line_of_the_originals_form_in_a_file_of_the_user_alone(home: Path) -> None:
    credentials.save("mycluster", "default", "MUNGE:AAA:")
    file = home / ".udiRoot" / ".cred"
    assert file.read_text() == "mycluster:default=MUNGE:AAA:\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_directory_that_was_open_to_others_is_closed(home: Path) -> None:
    (home / ".udiRoot").mkdir(mode=0o755)
    credentials.save("mycluster", "default", "MUNGE:AAA:")
    assert stat.S_IMODE((home / ".udiRoot").stat().st_mode) == 0o700


def test_saving_again_replaces_that_line_only(home: Path) -> None:
    credentials.save("mycluster", "default", "MUNGE:AAA:")
    credentials.save("mycluster", "localhost:5000", "MUNGE:BBB:")
    credentials.save("other", "default", "MUNGE:CCC:")
    with (home / ".udiRoot" / ".cred").open("a") as file:
        file.write("a line of a later version\n")
    credentials.save("mycluster", "default", "MUNGE:DDD=:")
    assert credentials.read("mycluster") == {"default": "MUNGE:DDD=:", "localhost:5000": "MUNGE:BBB:"}
    assert credentials.read("other") == {"default": "MUNGE:CCC:"}
    assert "a line of a later version\n" in (home / ".udiRoot" / ".cred").read_text()
    assert [path.name for path in (home / ".udiRoot").iterdir()] == [".cred"]


def test_logins_at_the_same_moment_all_last(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: credentials.save("mycluster", f"place{n}", f"MUNGE:{n}:"), range(64)))
    assert credentials.read("mycluster") == {f"place{n}": f"MUNGE:{n}:" for n in range(64)}
    assert [entry.name for entry in (home / ".udiRoot").iterdir()] == [".cred"]


def test_a_file_that_others_may_read_is_not_used_and_the_error_says_what_to_do(home: Path) -> None:
    credentials.save("mycluster", "default", "MUNGE:AAA:")
    (home / ".udiRoot" / ".cred").chmod(0o644)
    with pytest.raises(CredentialsError, match=r"\.cred is not yours alone: chown it to you and chmod 600"):
        credentials.read("mycluster")


@pytest.mark.parametrize("location", ["", "a=b", "a\nb"])
def test_a_location_that_the_file_cannot_hold_is_refused(location: str) -> None:
    with pytest.raises(CredentialsError, match="is no location"):
        credentials.save("mycluster", location, "MUNGE:AAA:")


def test_a_home_that_cannot_be_written_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    with pytest.raises(CredentialsError, match=r"\.udiRoot/\.cred: Not a directory"):
        credentials.save("mycluster", "default", "MUNGE:AAA:")
