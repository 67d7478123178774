"""A node's tables refuse what no kernel would do."""

import pytest

from sim.kernel import Kernel, LoopTable, MountTable, StartFailed
from sim.station import LawBroken


def test_the_lowest_free_loop_device_is_given_and_returned() -> None:
    loops = LoopTable(limit=3, in_use=1)
    assert [loops.attach("a"), loops.attach("b")] == [1, 2]
    loops.detach(1, "a")
    assert loops.attach("c") == 1
    assert loops.peak == 2


def test_a_start_without_a_free_device_fails_and_names_the_limit() -> None:
    loops = LoopTable(limit=1)
    loops.attach("a")
    with pytest.raises(StartFailed, match=r"no free loop device: all 1 are in use \(max_loop\)"):
        loops.attach("b")


def test_a_device_given_back_by_another_is_a_defect() -> None:
    loops = LoopTable(limit=2)
    loops.attach("a")
    with pytest.raises(LawBroken, match="loop0 given back by b"):
        loops.detach(0, "b")


def test_mounts_are_undone_in_reverse_or_not_at_all() -> None:
    mounts = MountTable()
    mounts.push("image")
    mounts.push("/etc")
    with pytest.raises(LawBroken, match="image unmounted, but /etc is on top"):
        mounts.pop("image")


def test_a_device_left_at_the_end_is_found() -> None:
    kernel = Kernel(7, max_loop=4, in_use=0, speed=1.0, plan_cached=True)
    kernel.hold("abc", with_loop=True)
    with pytest.raises(LawBroken, match="node 7: left behind: 1 loop devices"):
        kernel.check_empty()
    kernel.drop("abc")
    kernel.check_empty()


def test_a_crash_takes_mounts_and_devices_with_it() -> None:
    kernel = Kernel(0, max_loop=4, in_use=0, speed=1.0, plan_cached=True)
    kernel.hold("abc", with_loop=True)
    kernel.mounts.push("image")
    kernel.crash()
    kernel.check_empty()
