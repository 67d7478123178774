"""A user's name and password for a registry, kept out of every log by having no readable representation."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Credential:
    """user: as the registry knows him. password: the password or token, colons and all."""

    user: str
    password: str = field(repr=False)

    def __str__(self) -> str:
        return f"credential of {self.user}"
