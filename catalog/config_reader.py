"""Reads one JSON object key by key into types, so that an error can name the key, the value and what is allowed.

Used by catalog.config alone. Remembers which keys were asked for: what is left over is unknown, and is reported with
the nearest known name, never fatal (a newer or older gateway's file must still start this one).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path


class ConfigError(Exception):
    """imagemanager.json cannot be used; the message names the key, its value and what is allowed."""


class Section:
    """One JSON object of the configuration; `where` is its name in messages, such as `Platforms.mycluster`."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{where or 'the file'} is {_shown(data)}; it must be an object {{...}}")
        self._data: dict[str, object] = data
        self._where = where
        self._known: set[str] = set()

    def name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def has(self, key: str) -> bool:
        self._known.add(key)
        return self._data.get(key) is not None

    def get(self, key: str) -> object:
        self._known.add(key)
        return self._data.get(key)

    def ignored(self, *keys: str) -> None:
        """These keys are known, and mean nothing to this gateway."""
        self._known.update(keys)

    def bad(self, key: str, allowed: str) -> ConfigError:
        return ConfigError(f"{self.name(key)} is {_shown(self._data.get(key))}; allowed: {allowed}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self.bad(key, "a text that is not empty")
        return value

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if self.has(key) else None

    def path(self, key: str, default: Path | None = None) -> Path:
        value = self.text(key, str(default) if default else None)
        if not value.startswith("/"):
            raise self.bad(key, "an absolute path")
        return Path(value)

    def optional_path(self, key: str) -> Path | None:
        return self.path(key) if self.has(key) else None

    def choice(self, key: str, allowed: Collection[str], default: str) -> str:
        value = self.get(key)
        if value is None:
            return default
        if value not in allowed:
            raise self.bad(key, ", ".join(sorted(allowed)))
        return str(value)

    def number(self, key: str, default: float, *, low: float = 0, high: float = 2**53) -> float:
        value = self.get(key)
        if value is None:
            return default
        # Old files write some numbers as texts; both were taken.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, default: int, *, low: int = 0, high: int = 2**53) -> int:
        value = self.number(key, default, low=low, high=high)
        if value != int(value):
            raise self.bad(key, f"a whole number from {low} to {high}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        if isinstance(value, int) and value in {0, 1}:
            return bool(value)
        raise self.bad(key, "true or false")

    def names(self, key: str) -> tuple[str, ...]:
        """A list of words; one text stands for a list of one (or of several, with commas between)."""
        value = self.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        if not isinstance(value, list) or not all(isinstance(word, str | int) for word in value):
            raise self.bad(key, "a list of names")
        return tuple(str(word) for word in value)

    def duration(self, key: str, default: timedelta) -> timedelta:
        """`D:H:M:S`, as ImageExpirationTimeout is written; fewer parts are the smaller units."""
        value = self.get(key)
        if value is None:
            return default
        parts = str(value).split(":")
        if len(parts) > 4 or not all(part.isdigit() for part in parts):
            raise self.bad(key, 'days:hours:minutes:seconds, such as "90:00:00:00"')
        days, hours, minutes, seconds = [0] * (4 - len(parts)) + [int(part) for part in parts]
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)

    def section(self, key: str) -> Section:
        return Section(self.get(key), self.name(key))

    def sections(self, key: str) -> Mapping[str, Section]:
        inner = self.section(key)
        return {name: Section(value, inner.name(name)) for name, value in inner._data.items()}

    def unknown(self) -> list[str]:
        """One warning a key that nobody asked for, with the nearest known one."""
        warnings = []
        for key in self._data:
            if key in self._known:
                continue
            folded = {known.lower(): known for known in self._known}
            near = difflib.get_close_matches(key.lower(), folded, n=1, cutoff=0.6)
            hint = f"; did you mean {folded[near[0]]}?" if near else ""
            warnings.append(f"unknown key {self.name(key)} is ignored{hint}")
        return warnings


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    return repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
