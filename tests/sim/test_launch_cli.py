"""`shifter-sim launch | compare | advise | parameters` as a person at a terminal meets them."""

import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from sim import cli, report_html
from sim.parameters import SECTIONS, Scenario
from sim.scenario import SHIPPED

QUICK = ("--set", "launch.tasks=4", "--set", "image.bytes=50000000")


def test_launch_prints_one_line_a_size_and_the_phases(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["launch", "small", "--nodes", "4,16", *QUICK]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines if line[:1] in (["4"], ["16"]) and line[1].isdigit()] == [
        ["4", "16"],
        ["16", "64"],
    ]
    for word in ("prolog", "stepd", "metadata server", "data server", "look-ups"):
        assert word in out


def test_launch_writes_json_that_is_the_same_for_the_same_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for file, seed in zip(files, ("7", "7", "8"), strict=True):
        assert cli.main(["launch", "small", "--nodes", "4", "--seed", seed, "--json", str(file), *QUICK]) == 0
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    (outcome,) = json.loads(files[0].read_text())
    assert (outcome["nodes"], outcome["seed"], outcome["gateway_lookups"]) == (4, 7, 1)
    capsys.readouterr()
    cli.main(["launch", "small", "--nodes", "4", "--seed", "7", "--json", "-", *QUICK])
    assert json.loads(capsys.readouterr().out) == [outcome]


def test_launch_writes_a_page_that_needs_nothing_beside_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "launch.html"
    assert cli.main(["launch", "small", "--nodes", "2,4", "--html", str(page), *QUICK]) == 0
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "src=" not in text and "<script" not in text and "<link" not in text
    for word in ("erofs", "broadcast", "node-cache", "unpacked", "All parameters", "filesystem.metadata_rate"):
        assert word in text


def test_the_plot_of_start_up_against_nodes_is_written_alone_and_is_the_page_s(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot, page = tmp_path / "launch.svg", tmp_path / "launch.html"
    assert cli.main(["launch", "small", "--nodes", "2,4", "--svg", str(plot), "--html", str(page), *QUICK]) == 0
    text = plot.read_text()
    assert text.startswith("<svg ")
    assert "no container" in text
    assert text.strip() in page.read_text()


def test_a_plot_without_matplotlib_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["launch", "small", "--nodes", "2", "--svg", str(tmp_path / "launch.svg"), *QUICK]) == 1
    assert capsys.readouterr().err == "shifter-sim: plots need matplotlib: install shifter[plots]\n"
    assert not list(tmp_path.iterdir())


def test_plots_have_readable_axes() -> None:
    pytest.importorskip("matplotlib")
    import re

    from sim import launch, plots, scenario

    def numbers(svg: str) -> list[str]:
        return re.findall(r"<text[^>]*>(-?[\d.]+)</text>", svg)

    shown = numbers(plots.curves({"a": [(4, 0.13), (16, 0.38)]}, "nodes", "seconds"))
    assert {"4", "16"} < set(shown)
    assert len(shown) >= 3, "within one decade the curve has a scale too"
    small = scenario.load("small", ["launch.tasks=2"])
    drawn = plots.timeline(launch.play(small, 3).machine)
    times, nodes = (re.findall(rf'id="{axis}tick_\d+".*?<text[^>]*>(.*?)</text>', drawn, re.S) for axis in "xy")
    assert float(times[0]) == 0
    assert all(node.isdigit() for node in nodes) and nodes


def test_a_page_shows_the_faults_and_the_configuration_that_it_was_made_with(tmp_path: Path) -> None:
    from sim import launch, scenario

    site = tmp_path / "<site>.toml"
    site.write_text(
        'name = "<b>"\n[launch]\nnodes = 2\ntasks = 2\n[[fault]]\nkind = "slow-node"\nnode = 1\nfactor = 7\n'
    )
    slow = scenario.load(str(site))
    page = report_html.page(slow, [launch.simulate(slow)], seed=0)
    for row in ("configuration</td><td>as shipped", "fault[0].kind</td><td>slow-node", "fault[0].factor</td><td>7.0"):
        assert row in page
    assert "fault[0].devices" not in page
    assert "<b>" not in page


def test_a_page_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import launch, scenario

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    small = scenario.load("small", ["launch.tasks=2"])
    page = report_html.page(small, [launch.simulate(small, 2)], seed=0)
    assert "plots need matplotlib: install shifter[plots]" in page


def test_failed_tasks_are_told_with_their_reason_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "node.max_loop=1", "--set", "node.loops_in_use=1")
    assert cli.main(["launch", "small", "--nodes", "2", *QUICK, *settings]) == 2
    assert "8 tasks: no free loop device: all 1 are in use (max_loop)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["launch", "smal"],
            'shifter-sim: smal: no such scenario file, and none of that name is shipped (did you mean "small"?)',
        ),
        (["launch", "small", "--set", "node.core=1"], 'shifter-sim: --set node.core=1: node: unknown key "core"'),
        (
            ["launch", "small", "--nodes", "2", "--json", "/nowhere/x.json"],
            "shifter-sim: /nowhere/x.json: No such file",
        ),
        (["compare", "small", "nowhere"], "shifter-sim: nowhere: no such scenario file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("seed", ["-3", "1.5", "x", ""])
def test_a_seed_that_is_no_whole_number_is_refused(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", "small", f"--seed={seed}"])
    assert ended.value.code == 2
    assert f"{seed!r}: write a whole number, 0 or more" in capsys.readouterr().err


def test_a_launch_too_big_for_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_big(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sim.launch.simulate", too_big)
    assert cli.main(["launch", "small"]) == 1
    assert capsys.readouterr().err == (
        "shifter-sim: not enough memory for so many nodes, tasks and jobs: choose fewer\n"
    )


def test_a_fault_that_comes_after_the_launch_is_said_to_have_changed_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    fault = '[[fault]]\nkind = "metadata-stall"\nduration = 0.1\n[[fault]]\nkind = "gateway-down"\nat = 70\n'
    site.write_text(f"[launch]\nnodes = 2\ntasks = 2\n{fault}")
    assert cli.main(["launch", str(site)]) == 0
    out = capsys.readouterr().out
    assert "fault[1]: gateway-down begins at 70 s, when the launch was over (" in out
    assert "fault[0]" not in out


def test_a_launch_that_is_ended_leaves_nothing_in_memory() -> None:
    argv = [sys.executable, "-m", "sim.cli", "launch", "centre-10000", "--nodes", ",".join(["10000"] * 20)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        tick = threading.Event()
        while not (opened := gateways(running.pid)):  # for another process's file there is no event
            assert running.poll() is None
            tick.wait(0.01)
        running.terminate()
        _, errors = running.communicate()
    assert (running.returncode, errors) == (130, "shifter-sim: interrupted\n")
    assert [path for path in opened if path.exists()] == []


def gateways(pid: int) -> set[Path]:
    """The directories of simulated gateways in which a process has files open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found |= {p for p in entry.readlink().parents if p.name.startswith("shifter-sim-")}
    return found


def test_a_gateway_that_does_not_come_up_leaves_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sim import answers

    monkeypatch.setattr(answers, "_memory", lambda: str(tmp_path))
    monkeypatch.setattr(answers.Catalog, "_configuration", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answers.Catalog(Scenario(), [])
    assert not list(tmp_path.iterdir())


def test_compare_names_what_differs_and_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    second = ("--set-second", "launch.strategy=erofs", "--set-second", "launch.prepared=false")
    assert cli.main(["compare", "small", "small", "--nodes", "4", *QUICK, *second]) == 0
    out = capsys.readouterr().out
    assert "launch.strategy: squashfs → erofs" in out
    assert "launch.prepared: true → false" in out
    assert any(line.split()[:3] == ["loop", "devices", "a"] for line in out.splitlines())


def test_compare_tells_faults_and_configurations_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "udiRoot.conf"
    conf.write_bytes((SHIPPED / "udiRoot.conf").read_bytes())
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    launch = "[launch]\nnodes = 2\ntasks = 2\n[[fault]]\n"
    one.write_text(f'{launch}kind = "slow-node"\nnode = 1\nfactor = 7\n')
    two.write_text(
        f'configuration = "{conf}"\n{launch}kind = "metadata-stall"\nduration = 1\n[[fault]]\nkind = "node-crash"\n'
    )
    assert cli.main(["compare", str(one), str(two)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"configuration: as shipped → {conf}" in out
    assert "fault[0]: slow-node node=1 factor=7.0 → metadata-stall duration=1.0" in out
    assert "fault[1]: none → node-crash" in out


def test_advise_names_the_figure_that_limits_the_launch(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    slow = ("--set", "filesystem.metadata_rate=100", "--set", "imports.files=200", "--set", "imports.source=filesystem")
    file = tmp_path / "advice.json"
    assert cli.main(["advise", "small", "--nodes", "8", *QUICK, *slow, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "filesystem.metadata_rate limits it" in out
    best = json.loads(file.read_text())[0]
    assert best["change"] == {"key": "imports.source", "value": "image", "kind": "configure", "also": [], "factor": 1.0}
    assert best["gain"] > 0.9


def test_advise_for_modules_on_the_file_system_names_the_container_that_brings_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = ("--set", "launch.strategy=none", "--set", "imports.files=500", "--set", "imports.source=filesystem")
    assert cli.main(["advise", "small", "--nodes", "8", *QUICK, *bare]) == 0
    out = capsys.readouterr().out
    proposed = "launch.strategy = squashfs, imports.source = image"
    assert f"Without buying anything, {proposed} saves " in out
    row = next(line for line in out.splitlines() if line.startswith(proposed))
    assert int(row.split()[-2].removesuffix("%")) > 50
    assert any(line.startswith("imports.source = node-cache") for line in out.splitlines())
    assert "node.plan_cached" not in out  # without a container nobody plans


def test_advise_says_whether_what_can_be_configured_takes_the_limit_away(capsys: pytest.CaptureFixture[str]) -> None:
    slow = ("--set", "node.slow_probability=0", "--set", "filesystem.data_bandwidth=1e9")
    assert cli.main(["advise", "centre-1000", "--nodes", "60", *QUICK, *slow]) == 0
    out = capsys.readouterr().out
    assert "filesystem.data_bandwidth limits it: twice as much saves " in out
    assert "Without buying anything, filesystem.stripes = 32 saves " in out
    assert "Then filesystem.data_bandwidth " in out
    assert "Nothing that the site can configure" not in out


def test_advise_for_a_start_that_reads_fewer_stripes_than_there_are_servers_makes_them_smaller(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "advice.json"
    slow = ("--set", "filesystem.data_bandwidth=2e8", "--json", str(file))
    assert cli.main(["advise", "centre-10000", "--nodes", "100", *QUICK, *slow]) == 0
    assert (
        "Without buying anything, filesystem.stripes = 96, filesystem.read_bytes = 65536 saves "
        in capsys.readouterr().out
    )
    changed = [e["change"] for e in json.loads(file.read_text()) if e["change"]["key"].startswith("filesystem")]
    layouts = [(c["key"], c["value"], c["also"]) for c in changed if c["kind"] == "configure"]
    assert sorted(layouts) == [
        ("filesystem.read_bytes", 262144, []),
        ("filesystem.stripes", 96, [["filesystem.read_bytes", 65536]]),
    ]


def test_advise_does_not_sell_what_comes_by_itself_as_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "small", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "On nodes that have started the same before, the plan is cached: " in out
    assert "node.plan_cached" not in out
    assert "gateway.threads" not in out, "one job asks once"
    assert "x as long" in out


def test_what_advise_and_compare_print_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    from sim import scenario

    bare = ("--set", "launch.prepared=false", "--set", "launch.by_tag=true", "--nodes", "2")
    assert cli.main(["advise", "small", *QUICK, *bare]) == 0
    shown = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if " = " in line and "  " in line]
    assert {"launch.prepared = true", "launch.by_tag = false", "gateway.threads = 32"} <= set(shown)
    for line in shown:
        scenario.load("small", line.split(", "))


def test_advise_tells_what_the_faults_cost_beside_what_the_site_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    faults = '[[fault]]\nkind = "metadata-stall"\nduration = 30\n[[fault]]\nkind = "corrupt-image"\nnode = 1\n'
    site.write_text(f"[launch]\nnodes = 4\ntasks = 2\n{faults}")
    assert cli.main(["advise", str(site)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 nodes x 2 tasks: last task after 30 s"
    assert lines[1] == "2 tasks fail: image object is corrupt: the mount finds no valid superblock"
    assert lines[2].startswith("Without its faults: last task after ")
    assert lines[2].endswith(" ms, none fails.")


def test_advise_for_a_launch_of_which_nothing_gets_up_says_what_would_let_it_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    full = ("--set", "node.max_loop=4", "--set", "node.loops_in_use=4")
    file = tmp_path / "advice.json"
    assert cli.main(["advise", "small", "--nodes", "2", *QUICK, *full, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "8 tasks fail: no free loop device: all 4 are in use (max_loop)" in out
    assert "lets 8 of them start" in out
    rescued = {e["change"]["key"]: e for e in json.loads(file.read_text()) if e["failed_after"] == 0}
    assert rescued["node.max_loop"]["change"]["value"] == 8
    assert rescued["launch.strategy"]["change"]["value"] in ("erofs", "unpacked")
    assert rescued["node.max_loop"]["before"] is None


def test_parameters_lists_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["parameters"]) == 0
    out = capsys.readouterr().out
    assert all(f"{section}." in out for section in SECTIONS)


def test_a_shipped_scenario_is_printed_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sim import scenario

    assert cli.main(["parameters", "small"]) == 0
    (tmp_path / "site.toml").write_text(capsys.readouterr().out)
    assert scenario.load(str(tmp_path / "site.toml")) == scenario.load("small")
    assert cli.main(["parameters", "smal"]) == 1
    assert 'did you mean "small"?' in capsys.readouterr().err


def test_a_description_is_printed_as_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.toml").write_text('description = "[bold]our [site]"\n[launch]\nnodes = 2\ntasks = 2\n')
    assert cli.main(["launch", str(tmp_path / "site.toml")]) == 0
    assert "scenario: [bold]our [site]" in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda f: f.stem)
def test_every_parameter_of_a_shipped_scenario_names_its_source(file: Path) -> None:
    for line in file.read_text().splitlines():
        key = line.partition("=")[0].strip()
        if "=" in line and not line.startswith("#") and key not in ("name", "description"):
            assert "# source: " in line, f"{file.name}: {line}"


def test_sizes_too_small_for_a_fault_are_refused_before_any_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('name = "ours"\n[launch]\nnodes = 8\ntasks = 2\n[[fault]]\nkind = "corrupt-image"\nnode = 20\n')
    assert cli.main(["launch", str(site), "--nodes", "21"]) == 2  # large enough: the fault strikes
    capsys.readouterr()
    monkeypatch.setattr("sim.launch.simulate", lambda *_: pytest.fail("a size was played"))
    assert cli.main(["launch", str(site), "--nodes", "32,20"]) == 1
    assert capsys.readouterr().err == (
        "shifter-sim: ours: fault[0]: corrupt-image has node = 20, but the nodes of this machine are 0 to 19: choose one of"
        " them, or more than 20 nodes\n"
    )
