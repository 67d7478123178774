"""Lay out what a node needs below a prefix, and compile the launcher for one udiRoot.conf.

`install(prefix, config)` makes `<prefix>/bin/{shifter,shifterimg,setupRoot,unsetupRoot,prepare-mpi}` and
`<prefix>/libexec/shifter/runtime/` (this package, byte-compiled). The launcher is static C; the paths that it trusts
are compiled in, because a setuid program must not learn them from its caller: only `config.c` is compiled per site,
the other objects are kept in a cache named by their source. It writes below prefix only, and changes nothing else.
"""

import argparse
import compileall
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime import __version__

PACKAGE = Path(__file__).resolve().parent
LAUNCHER = PACKAGE / "launcher"
FLAGS = [
    "-std=gnu11",
    "-O2",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wformat=2",
    "-Wstrict-prototypes",
    "-Wvla",
    "-D_GNU_SOURCE",
    "-D_FORTIFY_SOURCE=2",
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-fcf-protection",
    "-fno-common",
    "-fPIE",
]
HARDENING = "-Wl,-z,relro,-z,now,-z,noexecstack"
COMMANDS = {
    "shifterimg": "shifterimg",
    "setupRoot": "setuproot",
    "unsetupRoot": "unsetuproot",
    "prepare-mpi": "prepare_mpi",
}


class InstallFailed(Exception):
    """The launcher cannot be compiled, or the prefix cannot be written."""


@dataclass(frozen=True)
class Libc:
    """How to compile against a C library and link it statically.

    Words for the compiler, for the linker before the objects and after them, and sources that only this library needs.
    """

    compile: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    sources: tuple[Path, ...] = ()


HOSTS = Libc((), ("-static-pie", HARDENING), ())


def c_library() -> Libc:
    """musl where its development files are (Debian's musl-tools, on x86-64), else the host's.

    A program of musl's is at `main` after a few system calls and has looked at no variable of its caller's. The host's, glibc,
    reads GLIBC_TUNABLES even when setuid, and asks the processor for its features, which a virtual machine answers slowly:
    a quarter of a millisecond of each start. The words are those of musl-gcc, but for the position-independent start file.
    """
    triplet = compiler(["-print-multiarch"], "compile shifter").strip()
    directory = Path("/usr/lib") / triplet.replace("-gnu", "-musl")
    ours = triplet == "x86_64-linux-gnu"  # entry.S is written for it
    if not ours or not (directory / "rcrt1.o").exists() or not (directory / "musl-gcc.specs").exists():
        return HOSTS
    specs = ("-specs", str(directory / "musl-gcc.specs"))
    kernel = ("-idirafter", f"/usr/include/{triplet}", "-idirafter", "/usr/include")
    start = ("-static", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker,-z,text,-e,launcher_entry", HARDENING)
    return Libc(
        (*specs, *kernel),
        (*specs, *start, str(directory / "rcrt1.o"), str(directory / "crti.o")),
        (str(directory / "crtn.o"),),
        (LAUNCHER / "entry.S",),
    )


def real_interpreter() -> Path:
    """The system's own Python, never a shim: a shim costs more than a whole start."""
    for candidate in (Path("/usr/bin/python3"), Path("/usr/libexec/platform-python"), Path(sys.executable)):
        if candidate.exists():
            return candidate.resolve()
    raise InstallFailed("no Python found: install python3")


def compile_launcher(
    output: Path, config: Path, libexec: Path, python: Path, objects: Path | None = None, libc: Libc | None = None
) -> None:
    """Compile and link the launcher to `output`. Objects that know no path are reused from `objects`.

    `libc` is by default what `c_library` finds. Raises InstallFailed: no compiler, or it refused.
    """
    libc = libc or c_library()
    sources = [*sorted(LAUNCHER.rglob("*.c")), *libc.sources]
    headers = b"".join(header.read_bytes() for header in sorted(LAUNCHER.rglob("*.h")))
    common = objects or PACKAGE.parent / "build" / "launcher"
    if not os.access(common.parent if common.parent.exists() else common.parent.parent, os.W_OK):
        common = output.parent / ".objects"
    common.mkdir(parents=True, exist_ok=True)
    linked: list[Path] = []
    for source in sources:
        defines = []
        if source.name == "config.c":
            paths = {"CONFIG_PATH": config, "LIBEXEC_PATH": libexec, "PYTHON_PATH": python}
            defines = [f'-D{name}="{path}"' for name, path in paths.items()] + [f'-DVERSION="{__version__}"']
        key = hashlib.sha256(
            b"\0".join([source.read_bytes(), headers, " ".join([*FLAGS, *libc.compile, *defines]).encode()])
        )
        target = common / f"{source.stem}-{key.hexdigest()[:24]}.o"
        if not target.exists():
            fresh = target.with_suffix(f".{os.getpid()}.tmp")
            compiler([*FLAGS, *libc.compile, *defines, "-c", "-o", str(fresh), str(source)], f"compile {source.name}")
            fresh.rename(target)
        linked.append(target)
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    compiler([*FLAGS, *libc.before, "-o", str(fresh), *map(str, linked), *libc.after], "link shifter")
    fresh.rename(output)


def compiler(arguments: list[str], what: str) -> str:
    """Run the C compiler; what it printed. Raises InstallFailed with what it said."""
    command = os.environ.get("CC", "gcc")
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InstallFailed(f"cannot {what}: {command} not found: install gcc and libc6-dev") from None
    if done.returncode != 0:
        raise InstallFailed(f"cannot {what}: {done.stderr.strip()}")
    return done.stdout


def install(prefix: Path, config: Path, python: Path | None = None, setuid: bool = True) -> None:
    """Lay out `prefix/bin` and `prefix/libexec/shifter` for the udiRoot.conf at `config` (absolute; may come later).

    With `setuid` the launcher is made setuid root (needs root). Raises InstallFailed.
    """
    prefix, config, python = prefix.absolute(), config.absolute(), python or real_interpreter()
    binaries, libexec = prefix / "bin", prefix / "libexec" / "shifter"
    package = libexec / "runtime"
    for directory in (prefix, binaries, prefix / "libexec", libexec, package):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.chmod(0o755)
    for source in sorted(PACKAGE.glob("*.py")):
        shutil.copyfile(source, package / source.name)
        (package / source.name).chmod(0o644)
    compile_bytecode(package, python)
    shifter = binaries / "shifter"
    compile_launcher(shifter, config, libexec, python)
    shifter.chmod(0o755)
    if setuid:
        os.chown(shifter, 0, 0)
        shifter.chmod(0o4755)
    for command, module in COMMANDS.items():
        script = binaries / command
        script.write_text(
            f"#!{python} -IS\n"
            f"import sys\n\nsys.path.insert(0, {str(libexec)!r})\nsys.argv[0] = {command!r}\n"
            f"CONFIG = {str(config)!r}\n"
            f"from runtime.{module} import main\n\nsys.exit(main(sys.argv[1:], configuration=CONFIG))\n"
        )
        script.chmod(0o755)


def compile_bytecode(package: Path, python: Path) -> None:
    """Byte-compile `package` for the interpreter that will run it: nodes never write next to it."""
    if python.resolve() == Path(sys.executable).resolve():
        compileall.compile_dir(package, quiet=2, force=True)
        return
    code = "import compileall,sys;compileall.compile_dir(sys.argv[1],quiet=2,force=True)"
    subprocess.run([str(python), "-I", "-c", code, str(package)], check=False, stdout=subprocess.DEVNULL)


def main() -> int:
    """Command line: `python -m runtime.install PREFIX CONFIG [--no-setuid]`."""
    parser = argparse.ArgumentParser(prog="python -m runtime.install", description="Install the node programs.")
    parser.add_argument("prefix", type=Path, help="directory that gets bin/ and libexec/")
    parser.add_argument("config", type=Path, help="path of udiRoot.conf on the nodes")
    parser.add_argument("--python", type=Path, help="interpreter on the nodes (default: the system's)")
    parser.add_argument("--no-setuid", action="store_true", help="do not make shifter setuid root")
    arguments = parser.parse_args()
    try:
        install(arguments.prefix, arguments.config, arguments.python, not arguments.no_setuid)
    except (InstallFailed, OSError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
