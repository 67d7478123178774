"""A node to start containers on: an installed setuid launcher, a udiRoot.conf, and images made by hand.

Everything is below one public directory. `Node.start` runs `shifter` as an unprivileged user; no gateway is involved.
"""

import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.holds import drop_idle
from runtime.install import install
from runtime.udiroot import read

NOBODY = 65534
APPLETS = (
    "sh", "cat", "id", "ls", "true", "false", "env", "pwd", "touch", "echo", "mount", "mknod", "find", "stat", "sleep",
    "readlink", "head", "wc", "sync", "chmod", "su",
)  # fmt: skip
PASSWD = f"""root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/bin/sh
"""
GROUP = f"root:x:0:\ndaemon:x:1:\nnogroup:x:{NOBODY}:\nstaff:x:50:\n"


@dataclass
class Node:
    """A directory with bin/, images/, etc/ and udiRoot.conf; `settings` are the lines of the latter."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    fuse: Path | None = None
    """A device to be /dev/fuse for what is started here, where the machine's own is not for users (see `open_fuse`)."""

    @property
    def shifter(self) -> Path:
        return self.directory / "bin" / "shifter"

    def configure(self, **changes: str | None) -> None:
        """Change settings of udiRoot.conf (None removes one) and write it."""
        for key, value in changes.items():
            if value is None:
                self.settings.pop(key, None)
            else:
                self.settings[key] = value
        text = "".join(f"{key}={value}\n" for key, value in self.settings.items())
        path = self.directory / "udiRoot.conf"
        path.write_text(text)
        path.chmod(0o644)

    def image(self, name: str, files: Mapping[str, str] | None = None, **record: object) -> str:
        """Make an image with busybox and `files` (path -> text; "->x" is a link, a path ending in / a directory); its id."""
        tree = Path(tempfile.mkdtemp(dir=self.directory))
        tree.chmod(0o755)
        for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "var/tmp", "opt", "usr/lib"):
            (tree / directory).mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin/busybox")
        for applet in APPLETS:
            (tree / "bin" / applet).symlink_to("busybox")
        (tree / "etc/os-release").write_text(f"NAME={name}\n")
        for path, text in (files or {}).items():
            target = tree / path.lstrip("/")
            if path.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("->"):
                target.symlink_to(text[2:])
            else:
                target.write_text(text)
                target.chmod(0o755)
        self.pack(tree, name, **record)
        shutil.rmtree(tree)
        return f"id:{name}"

    def pack(self, tree: Path, name: str, image_format: str = "squashfs", **record: object) -> None:
        """Make `tree` the image `name`, with a sidecar of the given fields."""
        file = self.directory / "images" / f"{name}.{image_format}"
        file.unlink(missing_ok=True)
        if image_format == "squashfs":
            subprocess.run(
                ["mksquashfs", str(tree), str(file), "-quiet", "-no-progress", "-noappend", "-all-root", "-comp", "lz4"],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        else:
            subprocess.run(["mkfs.erofs", "--quiet", str(file), str(tree)], check=True, stdout=subprocess.DEVNULL)
        file.chmod(0o644)
        fields: dict[str, object] = {
            "version": 1, "id": name, "format": image_format, "object": "0" * 64, "size": 1, "arch": "amd64",
            "entrypoint": None, "cmd": None, "workdir": None, "env": ["PATH=/bin"], "labels": {},
            "public": True, "uids": [], "gids": [],
        }  # fmt: skip
        (self.directory / "images" / f"{name}.json").write_text(json.dumps({**fields, **record}))

    def start(
        self, *words: str, uid: int = NOBODY, gid: int | None = None, groups: Sequence[int] = (),
        env: Mapping[str, str] | None = None, cwd: str = "/", timeout: float = 30, stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run `shifter` with these words as a user; output as text."""
        argv, gid = [str(self.shifter), *words], uid if gid is None else gid
        identity: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": list(groups)}
        if self.fuse is not None:
            names = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
            argv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", names, *argv]
            argv = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /dev/fuse && exec "$@"', str(self.fuse), *argv]
            identity = {}
        return subprocess.run(
            argv, **identity,
            env={"HOME": "/", "PATH": "/usr/bin:/bin", **(env or {})}, cwd=cwd, timeout=timeout, input=stdin,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def open_fuse(self) -> None:
        """Give users a /dev/fuse: udev does, but not every machine runs it (a container or a small VM may not)."""
        if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
            self.fuse = self.directory / "fuse"
            os.mknod(self.fuse, 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
            self.fuse.chmod(0o666)

    def drop_holds(self) -> list[str]:
        """Take off the images that the node keeps mounted and that nobody uses; their names."""
        return drop_idle(read(str(self.directory / "udiRoot.conf")), linger=0)

    def leftovers(self) -> list[str]:
        """Mounts and loop devices of this node that are still there."""
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found = [line for line in mounts if str(self.directory) in line]
        for device in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                backing = device.read_text().strip()
            except OSError:  # it went away while we looked
                continue
            if backing.startswith(str(self.directory)):
                found.append(backing)
        return found

    def left(self) -> list[str]:
        """What is there to stay: a start elsewhere may carry copies of this node's mounts for some milliseconds.

        A mount namespace that another test made while this node had mounts carries copies as long as it lives: those are not
        this node's to take away.
        """
        limit = time.monotonic() + 5
        while (found := self.leftovers()) and time.monotonic() < limit:
            if (self.directory / "udiRoot.conf").exists():
                self.drop_holds()
        return [] if found and self.carried_elsewhere() else found

    def carried_elsewhere(self) -> bool:
        """Whether a process in another mount namespace sees mounts of this node."""
        ours = os.readlink("/proc/self/ns/mnt")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    os.readlink(process / "ns/mnt") != ours
                    and str(self.directory) in (process / "mountinfo").read_text()
                ):
                    return True
            except OSError:  # it ended
                continue
        return False


@contextmanager
def node() -> Iterator[Node]:
    """A fresh node, cleaned up after."""
    directory = Path(tempfile.mkdtemp(prefix="shifter-node-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        for name in ("images", "udiMount", "loopMount", "etc"):
            (directory / name).mkdir(mode=0o755)
        (directory / "etc/passwd").write_text(PASSWD)
        (directory / "etc/group").write_text(GROUP)
        install(directory, directory / "udiRoot.conf")
        made = Node(directory)
        made.configure(
            udiMount=f"{directory}/udiMount", loopMount=f"{directory}/loopMount", imagePath=f"{directory}/images",
            etcPath=f"{directory}/etc", system="testnode", allowLibcPwdCalls="0",
        )  # fmt: skip
        yield made
    finally:
        release(directory)
        shutil.rmtree(directory)


def release(directory: Path) -> None:
    """Take off every mount below a directory, the last first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed(mounts):
        if place.startswith(f"{directory}/"):
            subprocess.run(["umount", place], check=False, capture_output=True)


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a start that must fail: status 1, nothing on standard output, exactly one line on standard error."""
    assert (done.returncode, done.stdout) == (1, ""), done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("shifter: ")
    return lines[0]


def public(path: Path) -> Path:
    """A directory that anyone may enter and read."""
    path.mkdir(parents=True, exist_ok=True)
    os.chmod(path, 0o755)
    return path
