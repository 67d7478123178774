"""Gathers a site's MPI libraries and what they need into the directory of a shifter module.

``collect`` copies the named libraries to ``<target>/lib64``, the libraries that they load to ``<target>/lib64/dep``, and
rewrites the RPATH of all of them to where the module will be inside a container, so that LD_LIBRARY_PATH has to name
``lib64`` only and the dependencies do not leak to the user's programs. The C library stays the image's own: two of
them in one process cannot be. What a library opens by dlopen(3) is not seen; name it with ``also``.
Resolution follows ld.so(8): the library's own RPATH or RUNPATH, LD_LIBRARY_PATH, the cache of ldconfig, the defaults.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime import elf
from runtime.elf import Elf, ElfInvalid
from runtime.record import Record

# The parts of glibc (and the loader): a program has one of each, and it is the image's.
C_LIBRARY = frozenset(
    {
        "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libresolv.so.2", "libutil.so.1",
        "libanl.so.1", "libmvec.so.1", "libnss_files.so.2", "libnss_dns.so.2",
    }
)  # fmt: skip
DEFAULT_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")

# Names of one ABI, https://www.mpich.org/abi/: upstream's first, then Debian's for the same library.
ALIASES = (
    ("libmpi.so.12", "libmpich.so.12"),
    ("libmpifort.so.12", "libmpichfort.so.12"),
    ("libmpicxx.so.12", "libmpichcxx.so.12"),
)


class CollectFailed(Exception):
    """The module could not be made; the text names the library or file, and what to do."""


class Copied(Record):
    """``source`` is the real file; ``place`` is relative to the target; ``names`` are the links beside it."""

    soname: str
    source: str
    place: str
    names: tuple[str, ...]


class Collection(Record):
    """``from_image``: library -> versions of its symbols that the image's own copy must give."""

    target: str
    inside: str
    libraries: tuple[Copied, ...]
    dependencies: tuple[Copied, ...]
    extras: tuple[str, ...]
    from_image: tuple[tuple[str, tuple[str, ...]], ...]


def is_of_the_image(soname: str) -> bool:
    """Whether a library must be the image's own."""
    return soname in C_LIBRARY or soname.startswith(("ld-linux", "ld64.so", "ld-musl"))


def collect(
    libraries: Iterable[Path], target: Path, inside: str, *, library_path: Iterable[str] = (), also: Iterable[Path] = ()
) -> Collection:
    """Make ``target`` (absent or empty) from ``libraries``; ``inside`` is its path in a container.

    Raises CollectFailed: a library is missing, of another machine, or no library; ``target`` is in use; no patchelf.
    Then ``target`` is as it was.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CollectFailed(f"{target} exists and is not an empty directory: name another, or remove it")
    if shutil.which("patchelf") is None:
        raise CollectFailed("there is no patchelf in PATH: install it")
    own, needed = _closure(list(libraries), tuple(library_path))
    fresh = not target.exists()
    try:
        return _fill(target, inside, own, needed, also)
    except BaseException:
        # what is half-made would be taken for a module, and would stand in the way of the next try
        shutil.rmtree(target, ignore_errors=True)
        if not fresh:
            target.mkdir()
        raise


def _fill(target: Path, inside: str, own: list[Elf], needed: list[Elf], also: Iterable[Path]) -> Collection:
    own_directory, dep_directory = target / "lib64", target / "lib64" / "dep"
    dep_directory.mkdir(parents=True)
    copied = tuple(_copy(each, own_directory, target) for each in own)
    dependencies = tuple(_copy(each, dep_directory, target) for each in needed)
    extras = tuple(sorted(_copy_tree(path, dep_directory, target) for path in also))
    _alias(own_directory)
    rpath = f"{inside}/lib64/dep"
    _rewrite([target / each.place for each in copied], f"{inside}/lib64:{rpath}")
    _rewrite([target / each.place for each in dependencies], rpath)
    return Collection(str(target), inside, copied, dependencies, extras, _from_image([*own, *needed]))


def _closure(libraries: list[Path], library_path: tuple[str, ...]) -> tuple[list[Elf], list[Elf]]:
    """The named libraries and, apart, all that they load, each once, without what is the image's."""
    own = [_read(path) for path in libraries]
    if not own:
        raise CollectFailed("no library was named")
    for each in own:
        if each.machine != own[0].machine:
            raise CollectFailed(f"{each.path} is of another machine type than {own[0].path}")
    cache = _ldconfig()
    known = {each.soname or Path(each.path).name for each in own}
    found: list[Elf] = []
    missing: list[str] = []
    waiting: list[tuple[Elf, tuple[str, ...]]] = [(each, ()) for each in own]
    while waiting:
        parent, inherited = waiting.pop(0)
        search = (*_expanded(parent), *inherited)
        for soname in parent.needed:
            if soname in known or is_of_the_image(soname):
                continue
            known.add(soname)
            dependency = _find(soname, (*search, *library_path), cache, parent.machine)
            if dependency is None:
                missing.append(f"{soname} (needed by {parent.path})")
                continue
            found.append(dependency)
            waiting.append((dependency, search))
    if missing:
        raise CollectFailed(
            f"not found: {', '.join(missing)}: load the environment in which this MPI works (LD_LIBRARY_PATH), "
            "or give --library-path"
        )
    return own, found


def _read(path: Path) -> Elf:
    try:
        return elf.read(str(path.resolve(strict=True)))
    except ElfInvalid as error:
        raise CollectFailed(f"{error}: name a shared library such as libmpi.so.12") from None
    except OSError as error:
        raise CollectFailed(f"{path}: {error.strerror}") from None


def _expanded(library: Elf) -> tuple[str, ...]:
    origin = str(Path(library.path).parent)
    return tuple(part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for part in library.search)


def _find(soname: str, search: Iterable[str], cache: Mapping[str, list[str]], machine: int) -> Elf | None:
    candidates = [f"{directory}/{soname}" for directory in search]
    candidates += cache.get(soname, [])
    candidates += [f"{directory}/{soname}" for directory in DEFAULT_DIRECTORIES]
    for candidate in candidates:
        try:
            library = elf.read(os.path.realpath(candidate))
        except (OSError, ElfInvalid):
            continue  # the dynamic linker goes on, too
        if library.machine == machine:
            return library
    return None


def _ldconfig() -> dict[str, list[str]]:
    """Library name -> paths, as /etc/ld.so.cache has them; empty without ldconfig (then only directories count)."""
    program = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if program is None:
        return {}
    listing = subprocess.run([program, "-p"], capture_output=True, text=True, errors="surrogateescape").stdout
    cache: dict[str, list[str]] = {}
    for line in listing.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow:
            cache.setdefault(name.split()[0], []).append(path)
    return cache


def _copy(library: Elf, directory: Path, target: Path) -> Copied:
    source = Path(library.path)
    place = directory / source.name
    shutil.copyfile(source, place)
    place.chmod(0o755)
    names: list[str] = []
    if library.soname and library.soname != source.name:
        (directory / library.soname).symlink_to(source.name)
        names.append(library.soname)
    return Copied(library.soname, library.path, str(place.relative_to(target)), tuple(names))


def _copy_tree(path: Path, directory: Path, target: Path) -> str:
    """Copy plugins beside the dependencies, where the libraries that open them by name will look."""
    place = directory / path.name
    try:
        if path.is_dir():
            shutil.copytree(path, place, symlinks=False)
        else:
            shutil.copyfile(path, place)
    except (OSError, shutil.Error) as error:
        raise CollectFailed(f"--also {path}: {getattr(error, 'strerror', None) or error}") from None
    return str(place.relative_to(target))


def _alias(directory: Path) -> None:
    for names in ALIASES:
        present = [name for name in names if (directory / name).exists()]
        for name in names:
            if present and name not in present:
                (directory / name).symlink_to(present[0])


def _rewrite(files: Iterable[Path], rpath: str) -> None:
    """RPATH, not RUNPATH: it is searched before the LD_LIBRARY_PATH that a user may have."""
    for file in files:
        done = subprocess.run(
            ["patchelf", "--force-rpath", "--set-rpath", rpath, file], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CollectFailed(f"patchelf cannot rewrite {file}: {done.stderr.strip()}")


def _from_image(libraries: Iterable[Elf]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    wanted: dict[str, set[str]] = {}
    for library in libraries:
        for soname, version in library.needs_versions:
            if is_of_the_image(soname):
                wanted.setdefault(soname, set()).add(version)
    return tuple((soname, tuple(sorted(wanted[soname], key=version_key))) for soname in sorted(wanted))


def version_key(version: str) -> tuple[str, tuple[int, ...]]:
    """Sorts ``GLIBC_2.9`` before ``GLIBC_2.34``."""
    family, _, numbers = version.partition("_")
    return family, tuple(int(part) if part.isdigit() else -1 for part in numbers.split("."))
