"""What a planner may look at: the image that is being started (`View`) and the node (`Host`).

Both are small protocols with an implementation each, so that the simulator can plan for imagined nodes. `resolve`
follows symbolic links inside the image only, as the kernel will do once the image is the root. `Node` says with whose
rights it looks: paths that a user named are looked at with that user's rights.
"""

import errno
import os
import stat

from runtime.identity import User
from runtime.record import Record
from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class View(Protocol):
        """An image. Paths are absolute, and resolved but for their last part."""

        def kind(self, path: str) -> str:
            """dir, file, link, other, or "" where there is nothing."""
            ...

        def readlink(self, path: str) -> str: ...
        def names(self, path: str) -> list[str]: ...
        def mode(self, path: str) -> int: ...

    class Host(Protocol):
        """A node, as far as a plan depends on it."""

        def passwd_text(self) -> str: ...
        def group_text(self) -> str: ...
        def library_user(self, user: "int | str") -> "User | None": ...
        def library_group(self, gid: int) -> str: ...
        def kind(self, path: str) -> str: ...
        def user_kind(self, path: str) -> str:
            """dir or file, looked at with the user's rights. Raises OSError: not there, or not the user's to read."""
            ...

        def walk(self, path: str) -> "list[Entry]": ...
        def user_text(self, path: str) -> str: ...
        def proc_options(self) -> str: ...


LINKS = 40  # as many as the kernel follows


class Entry(Record):
    """Something below a directory that is copied: path relative to it, kind, and a link's value."""

    path: str
    kind: str
    value: str = ""


def kind_of(mode: int) -> str:
    """dir, file, link or other, from a mode of stat(2)."""
    if stat.S_ISDIR(mode):
        return "dir"
    if stat.S_ISREG(mode):
        return "file"
    return "link" if stat.S_ISLNK(mode) else "other"


class Mounted:
    """The View of an image through a descriptor of its root directory: nothing is looked up outside it."""

    def __init__(self, root: int) -> None:
        self.root = root

    def kind(self, path: str) -> str:
        try:
            return kind_of(os.lstat("." + path, dir_fd=self.root).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def readlink(self, path: str) -> str:
        return os.readlink("." + path, dir_fd=self.root)

    def names(self, path: str) -> list[str]:
        descriptor = os.open("." + path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.root)
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def mode(self, path: str) -> int:
        return stat.S_IMODE(os.lstat("." + path, dir_fd=self.root).st_mode)


def resolve(view: "View", path: str) -> str:
    """`path` with every symbolic link followed inside the image; parts that do not exist stay as they are.

    Raises StartRefused: too many links, or a part that is a file where a directory is needed.
    """
    done: list[str] = []
    todo = [part for part in path.split("/") if part][::-1]
    links = 0
    while todo:
        part = todo.pop()
        if part in (".", ".."):
            if part == ".." and done:
                done.pop()
            continue
        here = "/" + "/".join([*done, part])
        kind = view.kind(here)
        if kind == "link":
            links += 1
            if links > LINKS:
                raise StartRefused(f"{path}: too many symbolic links in the image")
            value = view.readlink(here)
            if value.startswith("/"):
                done = []
            todo.extend([piece for piece in value.split("/") if piece][::-1])
            continue
        if kind in ("file", "other") and todo:
            raise StartRefused(f"{path}: {here} is a file in the image: choose another target")
        done.append(part)
        if kind == "":
            done.extend(piece for piece in reversed(todo) if piece not in (".", ".."))
            break
    return "/" + "/".join(done)


class Node:
    """The Host that this process runs on; `uid`, `gid` are the caller's, its groups are this process's."""

    def __init__(self, uid: int, gid: int, etc_path: str = "", rootless: bool = False) -> None:
        self.uid, self.gid, self.etc_path, self.rootless = uid, gid, etc_path, rootless

    def passwd_text(self) -> str:
        return self._site_text("passwd")

    def group_text(self) -> str:
        return self._site_text("group")

    def _site_text(self, name: str) -> str:
        """A site's own table, else none: the C library is asked then."""
        if not self.etc_path:
            return ""
        try:
            with open(f"{self.etc_path}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def library_user(self, user: "int | str") -> User | None:
        import pwd

        try:
            entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
        except KeyError:
            return None
        return User(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_gecos, entry.pw_dir, entry.pw_shell)

    def library_group(self, gid: int) -> str:
        import grp

        try:
            return grp.getgrgid(gid).gr_name
        except KeyError:
            return ""

    def kind(self, path: str) -> str:
        try:
            return kind_of(os.stat(path).st_mode)
        except OSError:
            return ""

    def user_kind(self, path: str) -> str:
        with AsUser(self.uid, self.gid, self.rootless):
            kind = kind_of(os.stat(path).st_mode)
            if not os.access(path, os.R_OK | (os.X_OK if kind == "dir" else 0), effective_ids=True):
                raise PermissionError(errno.EACCES, "you may not read it", path)
            return kind

    def user_text(self, path: str) -> str:
        with AsUser(self.uid, self.gid, self.rootless):
            # a device or a pipe must not hang the start
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file", path)
                text = file.read((1 << 20) + 1)
                if len(text) > 1 << 20:
                    raise OSError(errno.EFBIG, "longer than 1 MiB", path)
                return text

    def walk(self, path: str) -> list[Entry]:
        found: list[Entry] = []
        waiting = [""]
        while waiting:
            below = waiting.pop()
            for name in sorted(os.listdir(f"{path}/{below}")):
                entry = f"{below}/{name}".lstrip("/")
                kind = kind_of(os.lstat(f"{path}/{entry}").st_mode)
                found.append(Entry(entry, kind, os.readlink(f"{path}/{entry}") if kind == "link" else ""))
                if kind == "dir":
                    waiting.append(entry)
        return found

    def proc_options(self) -> str:
        """What the host's own /proc restricts, for a new one: hidepid and gid."""
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 3 and fields[1] == "/proc" and fields[2] == "proc":
                    return ",".join(o for o in fields[3].split(",") if o.startswith(("hidepid=", "gid=")))
        return ""


class AsUser:
    """A context in which files are looked at with the caller's rights: root's capabilities are out of effect in it."""

    def __init__(self, uid: int, gid: int, already: bool = False) -> None:
        self.uid, self.gid, self.already = uid, gid, already

    def __enter__(self) -> None:
        if self.already:
            return
        os.setegid(self.gid)
        os.seteuid(self.uid)

    def __exit__(self, *_: object) -> None:
        if self.already:
            return
        os.seteuid(0)
        os.setegid(0)
