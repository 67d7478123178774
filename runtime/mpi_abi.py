"""May a site's MPI take the place of an image's? Decided by names, symbols and symbol versions, before anything runs.

``check`` compares a module made by ``prepare-mpi`` with the tree of an image and returns findings for people, worst
first. It reads files only; nothing of the image is executed. Links inside the image are followed inside it.
What it cannot see: behaviour behind equal names, and libraries that the image loads by dlopen(3).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from runtime import elf
from runtime.elf import Elf, ElfInvalid
from runtime.mpi_collect import ALIASES, CollectFailed, is_of_the_image, version_key
from runtime.record import Record

ERROR, WARNING, OK = "error", "warning", "ok"
_ORDER = (ERROR, WARNING, OK)
# Where images keep libraries; searched one level deep (for the multiarch directories of Debian).
LIBRARY_DIRECTORIES = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib", "usr/local/lib64")
OTHER_MPI = ("libmpi.so.40", "libmpi.so.20", "libmpi.so.1")  # Open MPI and others, of another ABI
_PREFIXES = ("mpi_", "pmpi_", "mpix_", "pmpix_", "mpio_")
_LINKS = 40  # as many as the kernel follows, path_resolution(7)


class Finding(Record):
    """``level`` is ERROR (it will not run), WARNING (some programs may not) or OK."""

    level: str
    text: str


def check(module: Path, root: Path, programs: Sequence[str] = ()) -> list[Finding]:
    """What speaks for and against using ``module`` (a directory of prepare-mpi) in the image whose tree is ``root``.

    ``programs``: paths inside the image whose MPI functions must all be there. Raises CollectFailed when ``module``
    or a program cannot be read.
    """
    ours = {each.soname: each for each in _read_all(module / "lib64")}
    if not ours:
        raise CollectFailed(f"{module}/lib64 holds no libraries: make the module with prepare-mpi collect")
    whole = [*ours.values(), *_read_all(module / "lib64" / "dep")]
    image = Image(root)
    findings = [
        *_machine(whole, image), *_replaced(module, ours, image), *_from_image(whole, image), *_shared(whole, image),
        *(_program(path, ours, image) for path in programs),
    ]  # fmt: skip
    return sorted(findings, key=lambda finding: _ORDER.index(finding.level))


class Image:
    """The libraries of an image's tree: file name -> facts. The first directory that has a name wins."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: dict[str, str] = {}
        for directory in LIBRARY_DIRECTORIES:
            for place in self._levels(directory):
                for name in sorted(os.listdir(place)):
                    if ".so" in name:
                        self.paths.setdefault(name, f"{place}/{name}")

    def _levels(self, directory: str) -> Iterator[str]:
        top = self.inside(directory)
        if top is None or not os.path.isdir(top):
            return
        yield top
        for name in sorted(os.listdir(top)):
            place = f"{top}/{name}"
            if name.endswith(("-linux-gnu", "mpich", "mpi")) and os.path.isdir(place) and not os.path.islink(place):
                yield place

    def inside(self, path: str) -> str | None:
        """The host's path of ``path`` in the image, its links resolved inside the image; None when there is none."""
        parts = [part for part in path.split("/") if part][::-1]
        at: list[str] = []
        links = 0
        while parts:
            part = parts.pop()
            if part in (".", ".."):
                at = at[:-1] if part == ".." else at
                continue
            here = os.path.join(self.root, *at, part)
            if os.path.islink(here):
                links += 1
                if links > _LINKS:
                    return None
                text = os.readlink(here)
                at = [] if text.startswith("/") else at
                parts += [piece for piece in text.split("/") if piece][::-1]
            elif os.path.exists(here):
                at.append(part)
            else:
                return None
        return os.path.join(self.root, *at)

    def library(self, soname: str) -> Elf | None:
        """The image's library of that name; None when there is none, or it is no library."""
        path = self.paths.get(soname)
        real = self.inside(os.path.relpath(path, self.root)) if path else None
        if real is None:
            return None
        try:
            return elf.read(real)
        except (ElfInvalid, OSError):
            return None

    def show(self, path: str) -> str:
        return "/" + os.path.relpath(path, self.root)


def mpi_symbols(symbols: Iterable[str]) -> frozenset[str]:
    """Those that belong to MPI's interface, C and Fortran."""
    return frozenset(symbol for symbol in symbols if symbol.lower().startswith(_PREFIXES))


def _read_all(directory: Path) -> list[Elf]:
    found: list[Elf] = []
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.is_file() and not path.is_symlink():
                try:
                    found.append(elf.read(str(path)))
                except ElfInvalid:
                    continue  # a plugin's configuration file
    return found


def _machine(whole: Sequence[Elf], image: Image) -> Iterator[Finding]:
    libc = image.library("libc.so.6")
    if libc is None:
        musl = next((name for name in image.paths if name.startswith("ld-musl")), None)
        reason = "it has musl" if musl else "no libc.so.6 was found"
        yield Finding(ERROR, f"the image is not built on glibc ({reason}); this module cannot be used in it")
    elif libc.machine != whole[0].machine:
        yield Finding(ERROR, "the image is of another machine type than the module")


def _replaced(module: Path, ours: dict[str, Elf], image: Image) -> Iterator[Finding]:
    any_theirs = False
    for soname, mine in ours.items():
        names = next((family for family in ALIASES if soname in family), (soname,))
        for name in names:
            theirs = image.library(name)
            if theirs is None:
                continue
            any_theirs = True
            if not (module / "lib64" / name).exists():
                yield Finding(WARNING, f"the module has no {name}; the image's own stays in use")
                continue
            missing = sorted(mpi_symbols(theirs.defined) - mine.defined)
            where = image.show(theirs.path)
            if missing:
                yield Finding(
                    WARNING, f"{where} has {len(missing)} MPI functions that {soname} lacks: {_some(missing)}"
                )
            else:
                count = len(mpi_symbols(theirs.defined))
                yield Finding(OK, f"{where} is replaced by {soname}: all its {count} MPI functions are there")
    if not any_theirs:
        other = [name for name in OTHER_MPI if name in image.paths]
        if other:
            where = image.show(image.paths[other[0]])
            yield Finding(WARNING, f"{where} is an MPI of another ABI; it is not replaced. Start with --module=none")
        else:
            yield Finding(WARNING, "no MPI library was found in the image; programs with their own path may differ")


def _from_image(whole: Sequence[Elf], image: Image) -> Iterator[Finding]:
    """Symbol versions that the module needs of the image's C library."""
    wanted: dict[str, set[str]] = {}
    for library in whole:
        for soname, version in library.needs_versions:
            if is_of_the_image(soname):
                wanted.setdefault(soname, set()).add(version)
    for soname, versions in sorted(wanted.items()):
        theirs = image.library(soname)
        if theirs is None:
            yield Finding(ERROR, f"the image has no {soname}, which the module needs")
            continue
        missing = sorted(versions - theirs.gives_versions, key=version_key)
        newest = max(versions, key=version_key)
        if missing:
            has = max((v for v in theirs.gives_versions if v.startswith("GLIBC_2")), key=version_key, default="none")
            yield Finding(
                ERROR,
                f"the module needs {missing[-1]} of {soname}, the image's {image.show(theirs.path)} ends at {has}",
            )
        else:
            yield Finding(OK, f"{soname} of the image gives all versions that the module needs (newest {newest})")


def _shared(whole: Sequence[Elf], image: Image) -> Iterator[Finding]:
    """Libraries of which both have one: whichever a program loads first serves both, so it must be new enough."""
    for library in whole:
        for soname, version in sorted(library.needs_versions):
            theirs = None if is_of_the_image(soname) else image.library(soname)
            if theirs is not None and theirs.gives_versions and version not in theirs.gives_versions:
                yield Finding(
                    WARNING,
                    f"the image's {image.show(theirs.path)} lacks {version}, which {library.soname} needs: a program "
                    f"that loads {soname} itself will not start",
                )


def _program(path: str, ours: dict[str, Elf], image: Image) -> Finding:
    real = image.inside(path)
    if real is None:
        raise CollectFailed(f"{path}: no such program in {image.root}")
    try:
        program = elf.read(real)
    except (ElfInvalid, OSError) as error:
        raise CollectFailed(str(error)) from None
    wanted = mpi_symbols(program.undefined)
    given = frozenset().union(*(library.defined for library in ours.values()))
    missing = sorted(wanted - given)
    family = {name for names in ALIASES for name in names} & set(program.needed)
    if missing:
        return Finding(ERROR, f"{path} calls MPI functions that the module lacks: {_some(missing)}")
    if not family:
        return Finding(
            WARNING, f"{path} loads no MPI library of this ABI itself (it needs {', '.join(program.needed)})"
        )
    return Finding(OK, f"{path} finds all its {len(wanted)} MPI functions in the module")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
