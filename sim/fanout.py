"""Messages from one to many by a tree, as the workload manager sends them, and files the same way."""

from __future__ import annotations

import numpy as np

from sim.draws import Floats
from sim.parameters import Scenario


def message_times(scenario: Scenario, speeds: Floats) -> Floats:
    """When each node has a message, in seconds after it was sent; `speeds` are the nodes' slowness factors, in tree
    order.

    The sender and every node forward to `tree_width` others, one `send_seconds` after the other; a node handles a
    message in `hop_seconds` times its slowness. Node k's parent is node k // width - 1 (the sender for the first).
    """
    p = scenario.slurm
    count, width = len(speeds), p.tree_width
    times = np.empty(count)
    own = p.hop_seconds * speeds + scenario.network.latency
    order = np.arange(count) % width * p.send_seconds
    low = 0
    high = min(width, count)
    times[low:high] = order[low:high] + own[low:high]
    while high < count:
        low, high = high, min(count, (high + 1) * width)
        parents = np.arange(low, high) // width - 1
        times[low:high] = times[parents] + order[low:high] + own[low:high]
    return times


def broadcast_seconds(scenario: Scenario, nodes: int, size: int, block: int = 8 * 1024 * 1024) -> float:
    """Seconds until the last of `nodes` has a file of `size` bytes, sent by the tree in blocks that are forwarded
    at once.

    Each node sends a block to its children one after the other, so a link carries the file once per child; the slower
    of that and the local disk sets the pace, and each level adds the time of one block.
    """
    if nodes <= 1:
        return size / scenario.local.write_bandwidth
    fan = min(scenario.slurm.tree_width, nodes - 1)
    pace = max(fan / scenario.network.node_bandwidth, 1 / scenario.local.write_bandwidth)
    depth = 1
    reach = fan
    while reach < nodes - 1:
        reach = reach * fan + fan if fan > 1 else reach + 1
        depth += 1
    return size * pace + depth * (min(block, size) * pace + scenario.slurm.hop_seconds)
