"""What a user of shifterimg sees, with every answer of the gateway written down here."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import shifterimg
from tests.requires import requires, requires_root
from tests.runtime.gateway_double import missing, nobody, record
from tests.runtime.site_double import Polls, Site, site, write_configuration

pytestmark = [requires("munged", "unmunge"), requires_root]

ROOT = Path(__file__).parents[2]
__all__ = ["site"]  # a fixture

# Output that other programs read


def test_lookup_prints_the_id_and_nothing_else(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["lookup", "ubuntu:24.04"]) == 0
    assert capsys.readouterr() == ("ab" * 32 + "\n", "")
    assert gateway.routes() == ["GET /api/lookup/mycluster/docker/ubuntu:24.04/"]


def test_lookup_of_an_unknown_image_prints_nothing_and_says_on_stderr_what_to_do(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(missing):
        assert shifterimg.main(["lookup", "nosuch"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "shifterimg: docker:nosuch:latest: no such image, or it is not visible to you;"
        " 'shifterimg pull docker:nosuch:latest' fetches it\n"
    )


def test_lookup_without_munge_says_that_it_asked_as_nobody(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUNGE_SOCKET", "/nonexistent/munge.socket")
    with site(missing):
        assert shifterimg.main(["lookup", "private:1"]) == 1
    err = capsys.readouterr().err
    assert "docker:private:1: not visible to somebody unknown, as whom you had to ask: munge: " in err
    assert "is munged running at /nonexistent/munge.socket?" in err


def test_images_prints_one_line_a_tag_sorted_by_tag_in_the_form_of_the_original(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        {**record(), "tag": ["zebra:1", "ape:2"], "id": "0123456789abcdef" * 4},
        record("mid:1", last_pull="MISSING", itype="custom"),
    ]
    with site(lambda _: (200, {"list": images})):
        assert shifterimg.main(["images"]) == 0
    pulled = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record()["last_pull"]))
    assert capsys.readouterr().out.splitlines() == [
        f"mycluster  docker     READY    0123456789   {pulled} ape:2                         ",
        "mycluster  custom     READY    ababababab   -                   mid:1                         ",
        f"mycluster  docker     READY    0123456789   {pulled} zebra:1                       ",
    ]


def test_images_as_json_is_the_gateways_list(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, {"list": [record()]})) as gateway:
        assert shifterimg.main(["images", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [record()]
    assert gateway.asked[0].path == "/api/list/mycluster/"


def test_images_of_the_past_are_asked_for_with_a_time_that_has_a_zone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(lambda _: (200, {"list": []})) as gateway:
        assert shifterimg.main(["images", "--as-of", "2026-11-01T12:00:00+05:00"]) == 0
        assert shifterimg.main(["images", "--as-of", "2026-11-01 12:00"]) == 0
    for asked in gateway.asked:
        assert re.fullmatch(
            r"/api/history/mycluster/images/\?at=2026-1[01]-\d\dT\d\d%3A00%3A00(%2B|-)\d\d%3A\d\d", asked.path
        )


# pull


def test_pull_prints_one_line_a_state_when_not_on_a_terminal(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    states = ["INIT", "PENDING", "PULLING", "PULLING", "EXAMINATION", "CONVERSION", "TRANSFER", "READY"]
    with site(Polls(*[record(status=state) for state in states])) as gateway:
        assert shifterimg.main(["pull", "ubuntu:24.04"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [*states[:3], *states[4:]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d Pulling Image: docker:ubuntu:24\.04, status: INIT", lines[0])
    assert gateway.routes() == ["POST /api/pull/mycluster/docker/ubuntu:24.04/"] * 8


def test_a_failed_pull_exits_1_and_says_the_gateways_reason(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    failed = record(status="FAILURE", status_message="registry.example.org: manifest unknown: no such tag")
    with site(Polls(record(status="INIT"), failed)):
        assert shifterimg.main(["pull", "ubuntu:99"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("status: FAILURE")
    assert err == "shifterimg: docker:ubuntu:99 failed: registry.example.org: manifest unknown: no such tag\n"


def test_words_of_a_registry_cannot_drive_the_terminal(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(Polls(record(status="FAILURE", status_message="no\x1b[2J such\r\ntag\x07"))):
        assert shifterimg.main(["pull", "a:1"]) == 1
    assert capsys.readouterr().err == "shifterimg: docker:a:1 failed: no?[2J such tag?\n"
    with site(lambda _: (400, {"error": "bad\x1b]0;title\x07"})):
        assert shifterimg.main(["rm", "a:1"]) == 1
    assert capsys.readouterr().err == "shifterimg: bad?]0;title?\n"


def test_a_failure_without_a_reason_is_said_to_have_none(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(Polls(record(status="FAILURE"))):
        assert shifterimg.main(["pull", "a:1"]) == 1
    assert "the gateway says FAILURE and gives no reason" in capsys.readouterr().err


def test_a_pull_outlives_a_gateway_that_restarts(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [(200, record(status="PULLING")), (503, {"error": "starting"}), (200, record(status="READY"))]
    with site(lambda _: answers.pop(0)):
        assert shifterimg.main(["pull", "a:1"]) == 0
    assert "the gateway does not answer, trying again" in capsys.readouterr().out


def test_a_pull_goes_on_after_a_poll_that_came_too_soon(site: Site) -> None:
    answers = [(200, record(status="PULLING")), (429, {"error": "too many requests"}), (200, record(status="READY"))]
    with site(lambda _: answers.pop(0)):
        assert shifterimg.main(["pull", "a:1"]) == 0
    assert answers == []


def test_pull_sends_users_and_groups_by_number(site: Site) -> None:
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["-u", "nobody,4242", "pull", "a:1", "--group=games", "-g7"]) == 0
    assert gateway.asked[0].body == {"allowed_uids": "65534,4242", "allowed_gids": "60,7"}


def test_unknown_users_and_groups_are_named_and_nothing_is_asked(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["pull", "a:1", "-u", "nobody,nosuchuser", "-g", "nosuchgroup"]) == 2
    assert gateway.asked == []
    err = capsys.readouterr().err
    assert "unknown user 'nosuchuser', group 'nosuchgroup'; nothing was asked of the gateway" in err


def test_pullnb_asks_once_and_leaves(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site(lambda _: (200, record(status="INIT"))) as gateway:
        assert shifterimg.main(["pullnb", "a:1"]) == 0
    assert len(gateway.asked) == 1
    assert capsys.readouterr().out.endswith("Pulling Image: docker:a:1, status: INIT\n")


def test_pull_as_json_prints_the_record_on_stdout_and_the_states_on_stderr(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(Polls(record(status="INIT"), record())):
        assert shifterimg.main(["--json", "pull", "a:1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == record()
    assert "status: INIT" in err


def test_a_digest_reference_is_passed_on_whole(site: Site) -> None:
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(["pull", "a@sha256:" + "0a" * 32]) == 0
    assert gateway.asked[0].route == f"/api/pull/mycluster/docker/a@sha256:{'0a' * 32}/"


def test_on_a_terminal_the_line_is_redrawn_with_bytes_and_never_wider_than_the_terminal(
    site: Site, tmp_path: Path
) -> None:
    half = {"done": 31 << 20, "total": 62 << 20, "layers_done": 2, "layers": 5}
    name = "registry.example.org/team/" + "x" * 60
    with site(Polls(record(status="PULLING", progress=half), record(progress=half))):
        wide, wide_status = on_terminal(["pull", "ubuntu:24.04"], columns=160)
    with site(Polls(record(status="PULLING", progress=half), record(progress=half))):
        narrow, narrow_status = on_terminal(["pull", name], columns=70)
    assert (wide_status, narrow_status) == (0, 0)
    assert "status: PULLING   50%  31.0 MiB of 62.0 MiB  2 of 5 layers  [###############...............]\x1b[K" in wide
    assert wide.count("\n") == 1  # redrawn in place, ended once
    assert narrow.count("\n") == 1
    assert all(len(piece.removesuffix("\x1b[K").strip("\r\n")) < 70 for piece in re.split("\r", narrow))


def test_verbose_on_a_terminal_prints_lines(site: Site) -> None:
    with site(Polls(record(status="PULLING"), record())):
        output, status = on_terminal(["pull", "-v", "a:1"], columns=100)
    assert status == 0
    assert [line.rpartition(" ")[2] for line in output.split("\r\n")] == ["PULLING", "READY", ""]


def on_terminal(arguments: list[str], columns: int) -> tuple[str, int]:
    """What shifterimg writes on a terminal so wide, and its exit status."""
    main, child = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.shifterimg", *arguments], stdin=child, stdout=child, stderr=child, cwd=ROOT
    )
    os.close(child)
    written = b""
    try:
        while piece := os.read(main, 65536):
            written += piece
    except OSError:
        pass  # EIO: the other side is closed, see pty(7)
    os.close(main)
    return written.decode(), process.wait()


def test_an_interrupted_pull_says_that_the_gateway_goes_on(site: Site) -> None:
    with site(lambda _: (200, record(status="PULLING"))):
        command = [sys.executable, "-m", "runtime.shifterimg", "pull", "a:1"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().endswith("status: PULLING\n")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err == "shifterimg: interrupted; what the gateway has begun goes on, see 'shifterimg queue'\n"


# Exit statuses and errors


def test_an_unreachable_gateway_is_status_4_and_verbose_tells_what_was_tried(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nobody() as first, nobody() as second:
        write_configuration(tmp_path / "udiRoot.conf", f"{first} {second}")
        assert shifterimg.main(["images"]) == 4
        assert capsys.readouterr().err.count("\n") == 1
        assert shifterimg.main(["images", "--verbose"]) == 4
        err = capsys.readouterr().err
    assert f"  tried {first}: connection refused\n" in err
    assert f"  tried {second}: connection refused\n" in err


@pytest.mark.parametrize(("status", "exit_status"), [(401, 3), (403, 3), (400, 1), (404, 1), (500, 1)])
def test_the_exit_status_tells_refusal_from_failure(
    site: Site, capsys: pytest.CaptureFixture[str], status: int, exit_status: int
) -> None:
    with site(lambda _: (status, {"error": "because of the rain"})):
        assert shifterimg.main(["rm", "a:1"]) == exit_status
    err = capsys.readouterr().err
    assert "because of the rain" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what to do? Give a verb: images lookup pull"),
        (["pul"], "unknown verb 'pul'; did you mean pull?"),
        (["pull"], "pull needs IMAGE"),
        (["pull", "a", "b"], "pull takes IMAGE, not also 'b'"),
        (["images", "x"], "images takes no arguments, not also 'x'"),
        (["pull", "a", "--usr=x"], "unknown option --usr; did you mean --user?"),
        (["pull", "a", "-x"], "unknown option -x"),
        (["pull", "a", "-u"], "--user needs a value: --user LIST"),
        (["pull", "a", "--json=1"], "--json takes no value"),
        (["images", "--user", "x"], "images takes no --user"),
        (["pull", "a b"], "white space"),
        (
            ["import", "/x/file", "a:1"],
            "its name does not say what it is: give --format squashfs|oci-layout|docker-archive",
        ),
        (
            ["import", "/x/file", "a:1", "--format", "zip"],
            "--format zip: known are squashfs, oci-layout, docker-archive",
        ),
        (["acl", "a", "--public", "-u", "nobody"], "--public leaves no room for --user and --group"),
        (["history", "-n", "none"], "--limit none: give a number above 0"),
    ],
)
def test_wrong_usage_is_status_2_and_names_the_word(
    site: Site, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with site(lambda _: (200, record())) as gateway:
        assert shifterimg.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.endswith("; see 'shifterimg --help'\n")
    assert gateway.asked == []


def test_a_missing_configuration_is_one_line_that_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHIFTER_UDIROOT_CONF", raising=False)
    assert shifterimg.main(["images"], configuration=str(tmp_path / "absent.conf")) == 1
    assert re.fullmatch(r"shifterimg: /.*/absent\.conf: cannot be read: .*\n", capsys.readouterr().err)


def test_a_reader_that_stops_early_gets_no_traceback(site: Site) -> None:
    many = [record(f"image:{number}") for number in range(20000)]
    with site(lambda _: (200, {"list": many})):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {sys.executable} -m runtime.shifterimg images | head -n 1"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_version_and_help_need_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert shifterimg.main(["--version"], configuration="/nonexistent") == 0
    assert re.fullmatch(r"shifterimg \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert shifterimg.main(["pull", "--help"], configuration="/nonexistent") == 0
    text = capsys.readouterr().out
    assert "Usage: shifterimg pull [OPTION...] IMAGE" in text
    assert "Example:\n  shifterimg pull" in text
    assert shifterimg.main(["-h"], configuration="/nonexistent") == 0
    assert (
        "Exit status: 0 done, 1 failed, 2 wrong usage, 3 not allowed, 4 gateway unreachable." in capsys.readouterr().out
    )
