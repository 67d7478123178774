"""The user's registry credentials, in ``~/.udiRoot/.cred``.

One line a credential: ``<system>:<location>=MUNGE:...``, a munge credential over ``user:password``. Only the gateway
can open it (it accepts an expired one here), so the file holds no readable password; even so it is made 0600 in a
directory of 0700. Writing replaces the file in one step and keeps every line that it does not understand.
"""

from __future__ import annotations

import os
import stat

DIRECTORY = ".udiRoot"
FILE = ".cred"


class CredentialsError(Exception):
    """The file cannot be read, written or trusted; the text names it and says what to do."""


def path() -> str:
    """Where this user's file is."""
    home = os.path.expanduser("~")
    if not home.startswith("/"):
        raise CredentialsError("you have no home directory: set HOME to keep registry credentials")
    return f"{home}/{DIRECTORY}/{FILE}"


def read(system: str) -> dict[str, str]:
    """Location -> munge credential, for ``system``; empty when nothing was saved. Raises CredentialsError."""
    found: dict[str, str] = {}
    for line in _lines(path()):
        entry = _split(line)
        if entry and entry[0] == system:
            found[entry[1]] = entry[2]
    return found


def save(system: str, location: str, credential: str) -> str:
    """Keep ``credential`` for ``location``, in place of an older one; returns the file's path.

    Raises CredentialsError.
    """
    if not location or any(c in location for c in "=\n\r") or ":" in system:
        raise CredentialsError(f"{location!r} is no location: it is empty or contains '=' or a line's end")
    import fcntl
    from contextlib import suppress

    file = path()
    directory = os.path.dirname(file)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.chmod(directory, 0o700)  # an older client may have made it wider
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # a home without locks: of two logins at one moment one may be lost
                fcntl.flock(lock, fcntl.LOCK_EX)
            kept = [line for line in _lines(file) if (_split(line) or ("", "", ""))[:2] != (system, location)]
            _replace(file, [*kept, f"{system}:{location}={credential}"])
        finally:
            os.close(lock)
    except OSError as error:
        raise CredentialsError(f"cannot save the credential in {file}: {error.strerror}") from error
    return file


def _replace(file: str, lines: list[str]) -> None:
    temporary = f"{file}.{os.urandom(8).hex()}"  # hosts that share a home must not meet
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write("".join(line + "\n" for line in lines))
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except OSError:
        os.unlink(temporary)
        raise


def _split(line: str) -> tuple[str, str, str] | None:
    """System, location and credential of a line; None for one of another form. A location may hold colons."""
    name, equals, credential = line.partition("=")
    system, colon, location = name.partition(":")
    return (system, location, credential) if equals and colon and credential else None


def _lines(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            status = os.fstat(stream.fileno())
            if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise CredentialsError(f"{file} is not yours alone: chown it to you and chmod 600, or remove it")
            return stream.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CredentialsError(f"cannot read {file}: {error.strerror}") from error
