"""What a site might leave on the machine, looked for in the kernel's own tables: mounts, loop devices, processes.

A thing belongs to a site when it names the site's directory: a mount by its point or source, a loop device by its backing
file, a process by its command line or its environment. The same looking serves `shifter-sim demo` and the tests.
"""

import os
import re
import time
from pathlib import Path


def of_site(directory: Path) -> list[str]:
    """One line for each mount, loop device and process that names `directory`; empty when nothing is left."""
    directory = directory.resolve()
    needle = str(directory)
    return [*_mounts(needle), *_loops(directory), *_processes(needle)]


def after(directory: Path, seconds: float = 60.0) -> list[str]:
    """Like `of_site`, once the site is down: the kernel frees a dead process's mounts and loop devices a moment later, which is
    long on a machine that is busy. Returns as soon as nothing is left.
    """
    deadline = time.monotonic() + seconds
    while (left := of_site(directory)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _mounts(needle: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line.split()[4]}" for line in lines if _names(line, needle)]


def _loops(directory: Path) -> list[str]:
    # A file that was opened in another mount namespace is shown by its path within its own file system.
    within = directory.relative_to(next(path for path in (directory, *directory.parents) if path.is_mount()))
    found = []
    for file in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            backing = file.read_text().strip()
        except OSError:  # freed since the directory was read
            continue
        if _names(backing, str(directory)) or _names(backing, f"/{within}"):
            device = f"/dev/{file.parts[3]}"
            if not _held_elsewhere(device, str(directory)):
                found.append(f"loop device {device} of {backing}")
    return found


def _held_elsewhere(device: str, needle: str) -> bool:
    """Whether strangers alone hold the device: a mount namespace made meanwhile has copies of a site's mounts, and the
    device goes with the last of them. It is the site's when this namespace, or a process of the site's, has it mounted,
    or nobody has.
    """
    if device in Path("/proc/self/mountinfo").read_text():
        return False
    strangers = False
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if re.search(rf" {device} ", table.read_text()):
                environment = (table.parent / "environ").read_bytes() + (table.parent / "cmdline").read_bytes()
                if _names(environment.decode(errors="replace"), needle):
                    return False
                strangers = True
        except (OSError, ProcessLookupError):
            continue
    return strangers


def _processes(needle: str) -> list[str]:
    found = []
    own = _ancestry()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if _names(command + "\0" + environment, needle):
            found.append(f"process {entry.name}: {command.replace(chr(0), ' ').strip()}")
    return found


def _names(text: str, path: str) -> bool:
    """Whether `text` holds `path` as a path or the beginning of one: /tmp/a is not named by /tmp/ab."""
    start = text.find(path)
    while start >= 0:
        following = text[start + len(path) : start + len(path) + 1]
        if not (following.isalnum() or following in ("_", "-", ".")):
            return True
        start = text.find(path, start + 1)
    return False


def _ancestry() -> set[int]:
    """This process and those that started it: their command lines may well name the directory."""
    found, pid = set(), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found
