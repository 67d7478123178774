"""Times as people write and read them: ISO 8601 with a zone, or how long ago."""

from __future__ import annotations

import re
from datetime import datetime

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class TimeInvalid(ValueError):
    """A text that is no time; the message shows the forms that are."""


def parse_time(text: str, now: float) -> float:
    """Unix seconds for `2026-11-23T18:00:00+01:00` (without a zone: local time), `2026-11-23`, Unix seconds, `2h`,
    `3d` (ago), or `now`. Raises TimeInvalid.
    """
    word = text.strip()
    if word == "now":
        return now
    ago = _AGO.fullmatch(word)
    if ago:
        return now - float(ago[1]) * _SECONDS[ago[2]]
    try:
        if re.fullmatch(r"\d{9,11}(\.\d+)?", word, re.ASCII):
            return float(word)
        return datetime.fromisoformat(word).timestamp()
    except (ValueError, OverflowError, OSError):
        raise TimeInvalid(
            f"{text!r} is not a time; write 2026-11-23T18:00:00+01:00, 2026-11-23, 2h, 3d (ago), or now"
        ) from None


def show_time(at: float) -> str:
    """Local time with its zone, to the second."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
