"""Waiting for the gateway to finish a pull or an import.

``wait`` repeats the same request until the image is READY or has failed: that is how clients of this gateway have
always polled. It outlives a gateway that restarts: only a silence of ``patience`` seconds ends it.
"""

from __future__ import annotations

import time

from runtime.gateway import Broken, Unreachable, one_line
from runtime.terminal import Progress

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WORKING = frozenset(
    {"MISSING", "INIT", "PENDING", "PULLING", "EXAMINATION", "CONVERSION", "HASHING", "TRANSFER"}
)  # fmt: skip
FIRST_PAUSE = 0.05  # seconds; doubled up to LONGEST_PAUSE, so that an image that is there already costs no wait
LONGEST_PAUSE = 0.5
PATIENCE = 120.0


class ImageFailed(Exception):
    """The gateway gave up; the text is its reason in a sentence."""


def wait(
    ask: Callable[[], dict[str, Any]], progress: Progress, *, patience: float = PATIENCE,
    pause: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:  # fmt: skip
    """Repeat ``ask`` until its record is READY and return that. Raises ImageFailed, or what ``ask`` raises.

    The first question must be answered; later a gateway may be away for ``patience`` seconds.
    """
    record = ask()
    answered = clock()
    between = FIRST_PAUSE
    while True:
        status = str(record["status"])
        progress.show(status, record.get("progress"))
        if status == "READY":
            return record
        if status not in WORKING:
            raise ImageFailed(reason(record))
        while True:
            pause(between)
            between = min(2 * between, LONGEST_PAUSE)
            try:
                record = ask()
            except (Unreachable, Broken):
                if clock() - answered >= patience:
                    raise
                progress.show(status, note="the gateway does not answer, trying again")
                continue
            answered = clock()
            break


def reason(record: dict[str, Any]) -> str:
    """Why a record is not READY, in one line."""
    text = record.get("status_message")
    if isinstance(text, str) and text.strip() and text != "MISSING":
        return one_line(text)
    return f"the gateway says {record.get('status')} and gives no reason; its log may know more"
