"""Calibration and validation: what is measured becomes parameters, and the parameters give back what was measured."""

import os
from pathlib import Path

import pytest

from sim import calibrate, emulation, launch, plots, scenario, validate
from sim.calibrate import Calibration, Figure
from sim.emulation import Instants
from sim.parameters import Scenario
from tests.requires import requires, requires_root


def calibration(*figures: tuple[str, float]) -> Calibration:
    return Calibration(
        "a machine", "2026-01-31", tuple(Figure(key, value, value, value, 9, "said so") for key, value in figures)
    )


def test_the_figures_of_slurm_give_back_the_launches_that_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cores", lambda: 2)
    one = Instants(1, first=0.140, last=0.140, inside=0.0, over=0.150)
    many = Instants(64, first=1.10, last=1.30, inside=0.0, over=1.40)
    # counted: 9 ms of prologs a node, 17 ms of the step; srun finds the prologs done at its look after 0.6 s
    made = Calibration(
        "a machine", "2026-01-31", tuple(calibrate.slurm(one, many, [0.036], [(0.009, 0.010)], repeats=1))
    )
    # a program that is no container: nothing between the task's begin and its end
    bare = scenario.override(validate.emulated(made, "warm"), ["launch.strategy=none", "node.start_seconds=0.0"])
    for nodes, wanted in ((1, one), (64, many)):
        record = launch.play(bare, nodes, stepwise=True, shared_cores=2).machine.record
        assert record.started.min() == pytest.approx(wanted.first, rel=0.05)
        assert record.started.max() == pytest.approx(wanted.last, rel=0.05)
        assert record.epilog_end.max() == pytest.approx(wanted.over, rel=0.05)


def test_nodes_that_share_two_cores_take_twice_the_time_for_twice_the_nodes() -> None:
    scenario_ = scenario.override(Scenario(), ["launch.tasks=1", "node.jitter=0.0", "slurm.prolog_seconds=0.05"])
    times = [launch.play(scenario_, n, stepwise=True, shared_cores=2).outcome.last_task or 0.0 for n in (32, 64)]
    assert times[1] / times[0] == pytest.approx(2, rel=0.1)


def test_a_calibration_is_a_scenario_file_whose_every_figure_has_a_spread(tmp_path: Path) -> None:
    made = calibration(("node.mount_seconds", 0.0004), ("node.step_seconds.bind", 0.00002), ("slurm.tree_width", 256))
    file = tmp_path / "machine.toml"
    file.write_text(made.toml())
    assert "mount_seconds = 0.0004              # source: said so, 0.0004 .. 0.0004, 9 measurements" in made.toml()
    loaded = scenario.load(str(file))
    assert (loaded.node.mount_seconds, loaded.step_cost("bind"), loaded.slurm.tree_width) == (0.0004, 0.00002, 256)
    assert loaded.node == made.scenario().node


def test_errors_are_relative_to_what_was_measured_and_every_point_is_shown() -> None:
    points = tuple(validate.Point("warm", n, "inside", 1.0, p) for n, p in ((1, 1.1), (2, 0.8), (4, 1.05)))
    found = validate.Validation(calibration(), points)
    assert found.median_error == pytest.approx(0.1)
    assert [row[-1] for row in validate.table(found)] == ["+10%", "-20%", "+5%"]


def test_the_plot_shows_both_axes_and_the_page_every_point() -> None:
    pytest.importorskip("matplotlib")
    points = tuple(validate.Point("cold", n, "inside", n * 0.1, n * 0.11) for n in (1, 2, 4))
    found = validate.Validation(calibration(("node.mount_seconds", 0.0004)), points)
    page = validate.page(found)
    assert page.count("<svg") == 1
    assert page.count("+10%") == 3
    text = validate.markdown(found, "plot.svg")
    assert "Made by `make validate` on 2026-01-31: a machine." in text
    assert text.count("| cold |") == 3
    assert "](plot.svg)" in text
    assert "measured, seconds" in plots.scatter({("a", "b"): [(1.0, 1.1)]}, "measured, seconds", "predicted, seconds")


@requires_root
@requires("munged", "slurmctld", "slurmd", "gcc", "skopeo", "mksquashfs")
@pytest.mark.slurm
@pytest.mark.slow
def test_this_machine_is_calibrated_and_predicted_on_real_emulated_nodes(
    public_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "STARTS", 10)
    monkeypatch.setattr(calibrate, "LOOKUPS", 30)
    with emulation.workbench(public_directory / "bench", 4) as bench:
        found = validate.validate(bench, sizes=(1, 4), repeats=1)
    assert len(found.points) == len(validate.VARIANTS) * 2 * len(validate.INSTANTS)
    assert all(point.measured > 0 and point.predicted > 0 for point in found.points)
    # how far off they are is for a machine that does nothing else to say: `make validate`, and this variable
    assert found.median_error < float(os.environ.get("SHIFTER_TEST_VALIDATION", "inf"))
    figures = {figure.key: figure for figure in found.calibration.figures}
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    measured = [key for key, figure in figures.items() if figure.count]
    for key in ("node.step_seconds.bind", "node.mount_seconds", "node.loop_seconds", "gateway.lookup_seconds"):
        assert key in measured and figures[key].value > 0, key
    assert {"node.planner_seconds", "node.start_seconds", "node.join_seconds", "slurm.step_seconds"} < set(measured)
