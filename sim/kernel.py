"""A node's kernel, as far as a container start uses it: loop devices, mounts, cached pages.

The tables raise `LawBroken` when the simulation does what no kernel would allow: two holders of one loop device, a
mount undone out of order, a device left at the end. `StartFailed` is the other kind: what a real start may meet,
with the reason.
"""

from __future__ import annotations

import heapq

from sim.station import LawBroken


class StartFailed(Exception):
    """A start that fails on its node, for the reason given in one sentence."""


class LoopTable:
    """The loop devices of one node: lowest free number first, as LOOP_CTL_GET_FREE hands them out."""

    __slots__ = ("_free", "_holder", "limit", "peak", "taken")

    def __init__(self, limit: int, in_use: int = 0) -> None:
        self.limit = limit
        self.peak = 0
        self.taken = 0
        self._free = list(range(min(in_use, limit), limit))
        self._holder: dict[int, str] = {}

    def attach(self, holder: str) -> int:
        """The number of a device that is now `holder`'s alone. Raises StartFailed when there is none."""
        if not self._free:
            raise StartFailed(f"no free loop device: all {self.limit} are in use (max_loop)")
        device = heapq.heappop(self._free)
        if device in self._holder:
            raise LawBroken(f"loop{device} held by {self._holder[device]} and by {holder}")
        self._holder[device] = holder
        self.taken += 1
        self.peak = max(self.peak, len(self._holder))
        return device

    def detach(self, device: int, holder: str) -> None:
        """Gives a device back. Raises LawBroken when it is not that holder's."""
        if self._holder.pop(device, None) != holder:
            raise LawBroken(f"loop{device} given back by {holder}, who does not hold it")
        heapq.heappush(self._free, device)

    def reset(self) -> None:
        """The kernel is gone, and every holder with it."""
        for device in list(self._holder):
            del self._holder[device]
            heapq.heappush(self._free, device)

    def held(self) -> int:
        """Devices in use by starts."""
        return len(self._holder)


class MountTable:
    """Mounts of one namespace, undone in reverse."""

    __slots__ = ("_stack", "undone")

    def __init__(self) -> None:
        self._stack: list[str] = []
        self.undone = 0

    def push(self, what: str) -> None:
        """A mount is made."""
        self._stack.append(what)

    def pop(self, what: str) -> None:
        """A mount is undone. Raises LawBroken unless it is the last one made."""
        if not self._stack or self._stack[-1] != what:
            raise LawBroken(f"{what} unmounted, but {self._stack[-1] if self._stack else 'nothing'} is on top")
        self._stack.pop()
        self.undone += 1

    def names(self) -> tuple[str, ...]:
        """What is mounted, first made first."""
        return tuple(self._stack)

    def clear(self) -> int:
        """The namespace (or the node) is gone, and every mount with it; how many those were."""
        count = len(self._stack)
        self._stack.clear()
        return count


class Kernel:
    """One node's state, which stays from job to job."""

    __slots__ = (
        "cached",
        "copies",
        "crashed",
        "holds",
        "images_opened",
        "index",
        "jobs",
        "loops",
        "most_opened",
        "mounts",
        "plans",
        "speed",
    )

    def __init__(self, index: int, max_loop: int, in_use: int, speed: float, plan_cached: bool) -> None:
        self.index = index
        self.loops = LoopTable(max_loop, in_use)
        self.mounts = MountTable()
        self.holds: dict[str, int] = {}  # image -> loop device (-1: none needed)
        self.cached: set[str] = set()  # images whose start-up pages are in the page cache
        self.copies: set[str] = set()  # images on the node's own storage
        self.plans = plan_cached
        self.speed = speed
        self.images_opened = 0  # by the job that the node works for
        self.most_opened = 0
        self.crashed = False
        self.jobs = 0  # that had the node so far

    def hold(self, image: str, with_loop: bool) -> None:
        """Mounts an image once for the whole node."""
        if image in self.holds:
            raise LawBroken(f"node {self.index}: image {image} held twice")
        self.holds[image] = self.loops.attach(f"hold:{image}") if with_loop else -1
        self.opened()

    def opened(self) -> None:
        """The image file was opened for one more mount."""
        self.images_opened += 1
        self.most_opened = max(self.most_opened, self.images_opened)

    def begin_job(self) -> None:
        """A new job gets the node, restarted if it had crashed."""
        self.crashed = False
        self.images_opened = 0
        self.jobs += 1

    def drop(self, image: str) -> None:
        """Ends a hold and frees its loop device."""
        device = self.holds.pop(image)
        if device >= 0:
            self.loops.detach(device, f"hold:{image}")

    def crash(self) -> None:
        """The node stops: whatever its kernel held is gone with it; what is on its disk stays."""
        self.crashed = True
        self.mounts.clear()
        self.holds.clear()
        self.loops.reset()
        self.cached.clear()
        self.plans = False

    def check_empty(self) -> None:
        """Raises LawBroken when a loop device, hold or mount is left."""
        if self.loops.held() or self.holds or self.mounts.names():
            left = f"{self.loops.held()} loop devices, holds {sorted(self.holds)}, mounts {list(self.mounts.names())}"
            raise LawBroken(f"node {self.index}: left behind: {left}")
