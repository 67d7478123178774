"""Mount points: where each thing goes in the container's root, and what must be made where the image has no place for
it.

The bulk of an image is used as it is. Only where a mount point is missing, the directory that lacks it is replaced by
an *underlay*: a tmpfs in which the image's entries are bound again beside the new one (an overlay where they are
many). `Tree` collects the wishes, then `steps` gives the underlays; it promises that nothing is ever made in a
directory of the host.
"""

from runtime.plan import Bind, MakeDir, Overlay, Remount, Step, Symlink, Tmpfs, Write
from runtime.record import Record
from runtime.refusal import StartRefused
from runtime.view import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.view import Host, View

MANY = 128
"""Entries of a directory above which one overlay is cheaper than a bind for each."""


class Place(Record):
    """A mount point in the container: its path with the image's links resolved, dir or file, and what wants it."""

    path: str
    kind: str
    wanted: str
    hides: bool = True  # whether what the image has there is out of sight


def inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


class Tree:
    """The container's root as it grows: image, host directories bound over it, underlays."""

    def __init__(self, view: "View", host: "Host", rootfs: str = "tmpfs", writable_root: bool = False) -> None:
        self.view, self.host, self.rootfs = view, host, rootfs
        self.bound: dict[str, tuple[str, str]] = {}  # container path -> (host path, what it is)
        self.places: list[Place] = []
        self.underlaid: set[str] = {"/"} if writable_root else set()
        self.made: set[str] = set()  # mount points that a step makes

    def resolve(self, target: str) -> str:
        """Where `target` leads in the image. Raises StartRefused."""
        return resolve(self.view, target)

    def add(
        self, path: str, kind: str, wanted: str, source: str = "", hides: bool = True, by_user: bool = False
    ) -> None:
        """Make sure that `path` (resolved) can be mounted on; `source` is the host's directory that will appear there.

        Raises StartRefused: it is a file where a directory is needed or the other way round, or it would have to be
        made in a directory of the host.
        """
        for place, (origin, what) in self.bound.items():
            if path != place and inside(path, place):
                found = self._on_host(origin + path[len(place) :], by_user)
                if not found:
                    raise StartRefused(
                        f"{wanted}: {path} does not exist in {what}: make it there, or choose another target"
                    )
                self._check(path, found, kind, wanted, what)
                break
        else:
            found = self.view.kind(path)
            if found:
                self._check(path, found, kind, wanted, "the image")
            else:
                self.underlaid.add(self._lacking(path))
        self.places.append(Place(path, kind, wanted, hides))
        if source:
            self.bound[path] = (source, wanted)

    def _on_host(self, path: str, by_user: bool) -> str:
        """What the host has there; a user is told of what the user can see only."""
        if not by_user:
            return self.host.kind(path)
        try:
            return self.host.user_kind(path)
        except OSError:
            return ""

    def _check(self, path: str, found: str, kind: str, wanted: str, where: str) -> None:
        if found != kind and not (found == "other" and kind == "file"):
            names = {"dir": "a directory", "file": "a file"}
            is_what, needs = names.get(found, "neither file nor directory"), names[kind]
            raise StartRefused(f"{wanted}: {path} is {is_what} in {where}, {needs} is needed: choose another target")

    def _lacking(self, path: str) -> str:
        """The deepest directory of the image above `path`."""
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            if self.view.kind(path) == "dir":
                return path
        return "/"

    def file(self, target: str, wanted: str) -> str:
        """Make sure that a file can be written at `target`, whatever the image has there; where that is."""
        path = self.resolve(target)
        directory = path.rpartition("/")[0] or "/"
        self.underlaid.add(directory if self.view.kind(directory) == "dir" else self._lacking(path))
        self.places.append(Place(path, "file", wanted))
        return path

    def steps(self) -> list[Step]:
        """The underlays: shallow first, so that each one's directory exists."""
        out: list[Step] = []
        for directory in sorted(self.underlaid, key=lambda path: path.count("/") if path != "/" else -1):
            if self._own(directory):
                continue  # filled with the underlay that it is in
            mode = f"{self.view.mode(directory):o}"
            out.append(Tmpfs(directory, mode, self.rootfs))
            out.extend(self._fill(directory))
        return out

    def mount_points(self, only: str = "") -> list[Step]:
        """Missing directories and files for mount points, in underlays (or in `only` that one): each is given once.

        They are made after the site's first hook, which may make them itself.
        """
        out: list[Step] = []
        for place in self.places:
            if self.view.kind(place.path) or any(place.path != b and inside(place.path, b) for b in self.bound):
                continue
            lacking = self._lacking(place.path)
            if only and lacking != only:
                continue
            parts = place.path[len(lacking) :].strip("/").split("/")
            for depth in range(1, len(parts) + 1):
                path = lacking.rstrip("/") + "/" + "/".join(parts[:depth])
                if path in self.made:
                    continue
                self.made.add(path)
                last = depth == len(parts)
                out.append(Write(path, "644") if last and place.kind == "file" else MakeDir(path, "755"))
        return out

    def seal(self) -> list[Step]:
        """Make the underlays read-only."""
        return [Remount(path, "ro") for path in sorted(self.underlaid) if path == "/" or not self._own(path)]

    def _own(self, directory: str) -> bool:
        """Whether the directory above is an underlay too, in which this one is a plain directory."""
        above = directory.rpartition("/")[0] or "/"
        return directory != "/" and above in self.underlaid and len(self._names(above)) <= MANY

    def _names(self, directory: str) -> list[str]:
        return self.view.names(directory)

    def _fill(self, directory: str) -> list[Step]:
        """The image's entries of an underlaid directory, shown again."""
        names = self._names(directory)
        if len(names) > MANY and directory != "/":
            return [*self.mount_points(directory), Overlay(directory)]
        out: list[Step] = []
        covered = {place.path for place in self.places if place.hides}
        for name in names:
            path = directory.rstrip("/") + "/" + name
            kind = self.view.kind(path)
            if kind == "link":
                out.append(Symlink(path, self.view.readlink(path)))
            elif kind == "dir":
                out.append(MakeDir(path, f"{self.view.mode(path):o}"))
                if path in self.underlaid:
                    out.extend(self._fill(path))
                elif path not in covered:
                    out.append(Bind("root", "image", path, path, "nodev"))
            elif kind == "file":
                out.append(Write(path, "644"))
                if path not in covered:
                    out.append(Bind("root", "image", path, path, "nodev"))
        return out
