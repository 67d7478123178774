"""The quick way of computing a launch gives what the slow one plays out: every task, every step, every queue an event."""

import numpy as np
import pytest

from tests.sim.imagined import play

#: settings, and the relative difference that is allowed: 1e-9 where the quick way is exact; more where it reads in bigger pieces
CASES = [
    ((), 1e-9),
    (("launch.prepared=false",), 1e-9),
    (("launch.prepared=false", "node.plan_cached=true"), 1e-9),
    (("launch.prepared=false", "launch.strategy=erofs"), 1e-9),
    (("launch.prepared=false", "launch.shared_hold=false"), 1e-9),
    (("launch.prepared=false", "launch.by_tag=true"), 1e-9),
    (("launch.prepared=false", "node.cores=2"), 1e-9),
    (("launch.prepared=false", "launch.strategy=unpacked"), 1e-9),
    (("launch.strategy=none",), 1e-9),
    (("launch.strategy=broadcast", "image.bytes=50000000"), 1e-3),
    (("launch.strategy=node-cache", "image.bytes=200000000"), 1e-2),
    (("filesystem.stripes=8",), 1e-9),
    (("slurm.prolog_slots=2", "slurm.tree_width=2"), 1e-9),
    (("launch.jobs=3", "launch.workload=array"), 1e-9),
    (("launch.jobs=4", "launch.images=2", "launch.workload=many", "launch.machine_nodes=12"), 1e-9),
    (("imports.files=200", "imports.bytes=3000000"), 1e-9),
    (("imports.files=200", "imports.bytes=3000000", "imports.source=node-cache"), 1e-9),
    (("imports.files=200", "imports.bytes=3000000", "imports.source=filesystem"), 1e-2),
    (("imports.files=200", "imports.source=filesystem", "filesystem.client_cache=false"), 5e-2),
    (("imports.files=200", "imports.source=filesystem", "filesystem.metadata_rate=2000"), 5e-2),
]


@pytest.mark.parametrize(("settings", "tolerance"), CASES, ids=[" ".join(s) or "default" for s, _ in CASES])
def test_quick_and_stepwise_agree_on_every_task(settings: tuple[str, ...], tolerance: float) -> None:
    quick, slow = play(*settings, seed=3), play(*settings, seed=3, stepwise=True)
    for name in ("prolog_end", "environment", "executed", "ready", "epilog_end"):
        a, b = (np.sort(getattr(run.machine.record, name).ravel()) for run in (quick, slow))
        np.testing.assert_allclose(a, b, rtol=tolerance, err_msg=name)
    for count in ("ready_tasks", "failures", "gateway_lookups", "image_opens_per_node", "loop_devices_per_node"):
        assert getattr(quick.outcome, count) == getattr(slow.outcome, count), count


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = play(seed=5, nodes=40), play(seed=5, nodes=40)
    assert one.outcome.as_json() == two.outcome.as_json()
    assert one.outcome.digest != play(seed=6, nodes=40).outcome.digest


def test_metadata_operations_and_bytes_are_conserved() -> None:
    imports = ("imports.files=200", "imports.bytes=3000000", "imports.source=filesystem", "imports.operations=4")
    for stepwise in (False, True):
        stations = {s.name: s for s in play(*imports, nodes=5, stepwise=stepwise).outcome.stations}
        assert stations["metadata server"].operations == 5 * (4 + 200 * 4)
        read = sum(s.bytes for name, s in stations.items() if name.startswith("data"))
        assert read == 5 * (3_000_000 + 128 * 1024 + 4 * 1024 * 1024)
