"""The verbs beyond pull, lookup and images: login, rm, import, acl, history, queue, expire, autoexpire."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import credentials, shifterimg
from tests.requires import requires, requires_root
from tests.runtime.gateway_double import Answer, Asked, record
from tests.runtime.munge_daemon import MungeDaemon
from tests.runtime.site_double import Polls, Site, site

pytestmark = [requires("munged", "unmunge"), requires_root]
__all__ = ["site"]  # a fixture

ROOT = Path(__file__).parents[2]


# login


def accept(_: Asked) -> Answer:
    return 200, {"status": True, "location": "default"}


def sent_login(asked: Asked, munged: MungeDaemon) -> dict[str, bytes]:
    """Location -> "user:password", out of a request."""
    payload = json.loads(munged.open(asked.headers["authentication"]).payload)
    return {where: munged.open(secret).payload for where, secret in payload["authorized_locations"].items()}


def test_login_saves_a_credential_that_the_registry_took_with_the_passwords_colons(
    site: Site, munged: MungeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("me\npass:word:\n"))
    with site(accept) as gateway:
        assert shifterimg.main(["login", "registry.example.org"]) == 0
    assert gateway.routes() == ["POST /api/login/mycluster/"]
    assert gateway.asked[0].body == {"location": "registry.example.org"}
    saved = credentials.read("mycluster")
    assert list(saved) == ["registry.example.org"]
    assert saved["registry.example.org"].startswith("MUNGE:")


def test_the_password_travels_only_inside_munge_credentials(
    site: Site, munged: MungeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("me\npass:word:\n"))
    with site(accept) as gateway:
        assert shifterimg.main(["login"]) == 0
    asked = gateway.asked[0]
    assert sent_login(asked, munged) == {"default": b"me:pass:word:"}
    assert "pass:word" not in asked.path + json.dumps(asked.body)


def test_a_pull_after_login_sends_what_was_saved(
    site: Site, munged: MungeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    with site(accept):
        assert shifterimg.main(["login", "--username=me"]) == 0
    saved = credentials.read("mycluster")
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["pull", "private/tool:1"]) == 0
    payload = json.loads(munged.open(gateway.asked[0].headers["authentication"]).payload)
    assert payload == {"authorized_locations": saved}


def test_credentials_that_others_may_read_are_not_sent_and_the_pull_goes_on(
    site: Site, munged: MungeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(credentials.save("mycluster", "default", "MUNGE:AAA:")).chmod(0o644)
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["pull", "a:1"]) == 0
    assert munged.open(gateway.asked[0].headers["authentication"]).payload == b""
    assert "is not yours alone" in capsys.readouterr().err


def test_a_password_that_the_registry_refuses_is_not_saved(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("me\nwrong\n"))
    with site(lambda _: (403, {"error": "registry.example.org: unauthorized: incorrect username or password"})):
        assert shifterimg.main(["login", "registry.example.org"]) == 3
    err = capsys.readouterr().err
    assert err == "shifterimg: registry.example.org: unauthorized: incorrect username or password\n"
    assert not Path(credentials.path()).exists()


@pytest.mark.parametrize(("typed", "why"), [("", "no user name or no password"), ("a:b\nx\n", "cannot contain ':'")])
def test_login_without_a_usable_answer_saves_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, why: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    with site(accept) as gateway:
        assert shifterimg.main(["login"]) == 1
    assert why in capsys.readouterr().err
    assert gateway.asked == []


def test_on_a_terminal_login_prompts_as_the_original_does_and_does_not_echo_the_password(
    site: Site, munged: MungeDaemon
) -> None:
    main, child = pty.openpty()
    with site(accept) as gateway:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.shifterimg", "login", "hub"],
            stdin=child, stdout=child, stderr=child, cwd=ROOT, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the controlling terminal, tty_ioctl(4)
        )  # fmt: skip
        os.close(child)
        screen = answer_prompts(main, {b"hub username: ": b"me\n", b"hub password: ": b"secret\n"})
        assert process.wait() == 0
    os.close(main)
    assert b"hub username: me" in screen
    assert b"secret" not in screen
    assert sent_login(gateway.asked[0], munged) == {"hub": b"me:secret"}


def answer_prompts(terminal: int, answers: dict[bytes, bytes]) -> bytes:
    """Type each answer when its prompt appears; everything that stood on the screen."""
    screen = b""
    for prompt, answer in answers.items():
        while prompt not in screen:
            screen += os.read(terminal, 4096)
        os.write(terminal, answer)
    try:
        while piece := os.read(terminal, 4096):
            screen += piece
    except OSError:
        pass  # EIO: the program has ended, see pty(7)
    return screen


# rm, acl, import


def test_rm_removes_each_image_named(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, {"status": True})) as gateway:
        assert shifterimg.main(["rm", "a:1", "custom:b"]) == 0
    assert gateway.routes() == [
        "DELETE /api/image/mycluster/docker/a:1/", "DELETE /api/image/mycluster/custom/b:latest/"
    ]  # fmt: skip
    assert capsys.readouterr().out == "removed docker:a:1\nremoved custom:b:latest\n"


@pytest.mark.parametrize("words", [("rm", "a:1"), ("acl", "a:1"), ("expire", "a:1")])
def test_a_change_that_nodes_do_not_know_yet_is_said_to_be_so(
    words: tuple[str, str], site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    later = {
        "status": True,
        "settled": False,
        "status_message": "recorded; the nodes are told as soon as they can be reached",
    }
    with site(lambda _: (200, later)):
        assert shifterimg.main(list(words)) == 0
    told = capsys.readouterr()
    assert told.err == "shifterimg: note: recorded; the nodes are told as soon as they can be reached\n"
    assert "a:1" in told.out


def test_rm_of_anothers_image_is_status_3_with_the_reason(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (403, {"error": "docker:a:1 was pulled by alice; only alice or an administrator removes it"})):
        assert shifterimg.main(["rm", "a:1"]) == 3
    assert "was pulled by alice" in capsys.readouterr().err


def test_rm_that_stops_half_way_tells_programs_what_is_gone(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda asked: (200, {"status": True}) if "/a:1/" in asked.route else (403, {"error": "not yours"})):
        assert shifterimg.main(["rm", "--json", "a:1", "b:1", "c:1"]) == 3
    assert json.loads(capsys.readouterr().out) == [{"status": True}]


def test_acl_shows_names_and_numbers(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, {"private": True, "userACL": [65534, 424242], "groupACL": []})):
        assert shifterimg.main(["acl", "a:1"]) == 0
    assert capsys.readouterr().out == "docker:a:1: private\nusers:  nobody (65534), 424242\ngroups: none\n"


def test_acl_with_lists_replaces_them_and_shows_the_result(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, {"private": True, "userACL": [65534], "groupACL": [60]})) as gateway:
        assert shifterimg.main(["acl", "a:1", "--user", "nobody", "--group", "games"]) == 0
    assert gateway.asked[0].body == {"allowed_uids": "65534", "allowed_gids": "60"}
    assert gateway.routes() == ["POST /api/acl/mycluster/docker/a:1/", "GET /api/acl/mycluster/docker/a:1/"]
    assert "groups: games (60)" in capsys.readouterr().out


def test_acl_public_sends_two_empty_lists(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, {"private": False})) as gateway:
        assert shifterimg.main(["acl", "--public", "a:1"]) == 0
    assert gateway.asked[0].body == {"allowed_uids": "", "allowed_gids": ""}
    assert capsys.readouterr().out == "docker:a:1: public\n"


def test_import_waits_for_the_image_and_knows_the_format_by_the_name(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(Polls(record(status="INIT"), record(status="HASHING"), record())) as gateway:
        assert shifterimg.main(["import", "/scratch/tool.squashfs", "custom:tool:1", "-u", "nobody"]) == 0
    assert gateway.asked[0].route == "/api/doimport/mycluster/custom/tool:1/"
    assert gateway.asked[0].body == {
        "filepath": "/scratch/tool.squashfs", "format": "squashfs", "allowed_uids": "65534"
    }  # fmt: skip
    assert "Importing Image: custom:tool:1, status: HASHING" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "format"), [("x.tar", "docker-archive"), ("x.oci.tar", "oci-layout"), ("x.sqsh", "squashfs")]
)
def test_import_takes_a_relative_path_from_here(site: Site, name: str, format: str) -> None:
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["import", name, "a:1"]) == 0
    assert gateway.asked[0].body == {"filepath": f"{os.getcwd()}/{name}", "format": format}


# history, queue, expire


def event(number: int) -> dict[str, object]:
    return {
        "id": number, "time": 1795455600.0 + number, "user": "alice", "uid": 1000, "action": "pull",
        "image": "docker:a:1", "detail": f"event {number}",
    }  # fmt: skip


def test_history_asks_with_the_filters_and_prints_a_line_an_event_with_the_zone(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(lambda _: (200, {"list": [event(1), event(2)], "next": None})) as gateway:
        filters = ["--by", "alice", "--action", "pull", "--since", "2026-11-01T00:00:00+01:00", "--until", "2h"]
        assert shifterimg.main(["history", "a:1", *filters]) == 0
    assert gateway.asked[0].path == (
        "/api/history/mycluster/?image=docker%3Aa%3A1&user=alice&action=pull"
        "&since=2026-11-01T00%3A00%3A00%2B01%3A00&until=2h&limit=100"
    )
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("2026-11-23T")
    assert first[19] in "+-"
    assert first.endswith("alice      pull            docker:a:1  event 1")


def test_history_leaves_out_the_stages_of_pulls_unless_verbose(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, {"list": [event(1), {**event(2), "action": "stage"}], "next": None})):
        assert shifterimg.main(["history"]) == 0
        assert capsys.readouterr().out.count("\n") == 1
        assert shifterimg.main(["history", "-v"]) == 0
        assert capsys.readouterr().out.count("\n") == 2


def test_history_fetches_older_pages_until_the_limit(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    pages = {None: ([event(5), event(6)], 5), "5": ([event(3), event(4)], 3), "3": ([event(2)], None)}

    def script(asked: Asked) -> Answer:
        before = asked.path.rpartition("before=")[2] if "before=" in asked.path else None
        entries, following = pages[before]
        return 200, {"list": entries, "next": following}

    with site(script):
        assert shifterimg.main(["history", "--limit", "5", "--json"]) == 0
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)] == [2, 3, 4, 5, 6]


def test_queue_prints_the_state_the_image_and_its_progress_or_reason(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        {"status": "PULLING", "image": "a:1", "progress": {"done": 1 << 20, "total": 4 << 20}},
        {"status": "FAILURE", "image": "b:1", "status_message": "no such tag"},
        {"status": "INIT", "image": "c:1"},
    ]
    with site(lambda _: (200, {"list": entries})):
        assert shifterimg.main(["queue"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "PULLING      a:1  1.0 MiB of 4.0 MiB",
        "FAILURE      b:1  no such tag",
        "INIT         c:1",
    ]


@pytest.mark.parametrize(("status", "exit_status"), [(True, 0), (False, 3), (None, 1)])
def test_expire_fails_when_the_gateway_refuses(site: Site, status: object, exit_status: int) -> None:
    with site(lambda _: (200, {"status": status})):
        assert shifterimg.main(["expire", "a:1"]) == exit_status


def test_autoexpire_prints_ids_and_names_and_is_refused_to_others(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(lambda _: (200, {"status": ["ab" * 32], "images": ["docker:old:1"]})) as gateway:
        assert shifterimg.main(["autoexpire"]) == 0
        assert shifterimg.main(["autoexpire", "--dry-run"]) == 0
    assert capsys.readouterr().out == ("ab" * 32 + " docker:old:1\n") * 2
    assert [asked.path for asked in gateway.asked] == [
        "/api/autoexpire/mycluster/", "/api/autoexpire/mycluster/?dry_run=true"
    ]  # fmt: skip
    with site(lambda _: (200, {"status": False})):
        assert shifterimg.main(["autoexpire"]) == 3
    assert "only an administrator" in capsys.readouterr().err
