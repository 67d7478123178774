"""What a node's prolog, steps and epilog tell each other about a job: small files in `<loopMount>/wlm`, root's alone.

| file | written | says |
|---|---|---|
| `<job>` | before anything is set up | the epilog has something to remove |
| `<job>.ready` | after set-up | the environment is the job's; its checked variables, a line each |
| `<job>.failed` | when set-up failed | the reason, in one line: the job's steps print it and end |
| `<job>.ccm` | after set-up for --ccm | tasks are to be put into the container |
| `<job>.sshd` | when the sshd runs | its pid and start time |
| `<job>.user` | before anything is set up | the user's uid |

The C plugin reads the same files. They are gone with the node's memory where loopMount is a tmpfs, and a stale one is
removed by the next prolog.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.udiroot import Udiroot

PARTS = ("ready", "failed", "ccm", "sshd", "user")


class State:
    """The files of one job on this node."""

    def __init__(self, conf: "Udiroot", job: int) -> None:
        self.directory = f"{conf.loop_mount}/wlm"
        self.job = job

    def begin(self, uid: int) -> None:
        """Says that the set-up of this user's job begins, and forgets what an earlier try said."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self._write("", str(self.job))
        for part in PARTS:
            self._remove(part)
        self._write("user", str(uid))

    def write(self, part: str, text: str) -> None:
        """Writes one of PARTS; one line, whole or not at all."""
        self._write(part, " ".join(text.split()))

    def read(self, part: str) -> str:
        """The text of one of PARTS, or "" when it was not written."""
        try:
            with open(self._path(part), encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def ready(self, variables: "Mapping[str, str]") -> None:
        """Says that the environment is the job's, and of what request it was made."""
        self._write("ready", "\n".join(f"{name}={value}" for name, value in variables.items()))

    def variables(self) -> "dict[str, str]":
        """What `ready` was told; empty when the environment is not (yet) the job's."""
        pairs = (line.partition("=") for line in self.read("ready").splitlines())
        return {name: value for name, _, value in pairs}

    def end(self) -> None:
        """Forgets the job; its first file last, so that an interrupted epilog can be repeated."""
        for part in PARTS:
            self._remove(part)
        self._remove("")

    def others(self) -> "list[int]":
        """The other jobs that have files here."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdigit() and int(name) != self.job)

    def _path(self, part: str) -> str:
        return f"{self.directory}/{self.job}.{part}" if part else f"{self.directory}/{self.job}"

    def _write(self, part: str, text: str) -> None:
        fresh = f"{self.directory}/.{self.job}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.rename(fresh, self._path(part))

    def _remove(self, part: str) -> None:
        try:
            os.unlink(self._path(part))
        except FileNotFoundError:
            return
