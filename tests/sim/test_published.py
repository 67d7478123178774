"""Published shapes, with their published parameters; docs/simulation.md says what was not published and had to be assumed."""

import pytest

from sim import launch, scenario
from sim.result import Launch


def imports(*settings: str, nodes: int) -> Launch:
    return launch.simulate(scenario.override(scenario.load("imports-1000"), settings), nodes)


def last(outcome: Launch) -> float:
    assert outcome.last_task is not None
    return outcome.last_task


def test_imports_of_24000_interpreters_from_the_file_system_take_tens_of_minutes() -> None:
    assert 20 * 60 < last(imports(nodes=1000)) < 90 * 60


def test_imports_from_the_file_system_grow_linearly_with_nodes() -> None:
    times = {nodes: last(imports(nodes=nodes)) for nodes in (125, 250, 500, 1000)}
    for fewer, more in ((125, 250), (250, 500), (500, 1000)):
        assert times[more] / times[fewer] == pytest.approx(2, rel=0.1)


IMAGE = ("launch.strategy=squashfs", "imports.source=image", "filesystem.stripes=32", "filesystem.data_bandwidth=2e10")


def test_one_image_a_node_starts_in_a_time_that_hardly_depends_on_the_number_of_nodes() -> None:
    times = {nodes: last(imports(*IMAGE, nodes=nodes)) for nodes in (16, 1000)}
    assert times[1000] / times[16] < 2.5  # from the file system: 60


def test_one_image_a_node_removes_about_four_orders_of_magnitude_of_metadata_operations() -> None:
    def operations(outcome: Launch) -> int:
        return next(s.operations for s in outcome.stations if s.name == "metadata server")

    assert operations(imports(nodes=100)) / operations(imports(*IMAGE, nodes=100)) > 5_000
