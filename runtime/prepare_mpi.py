"""``prepare-mpi``: makes a shifter module of a site's MPI, and checks it against an image.

For administrators, on a login node, once for each MPI. ``collect`` writes the module's directory and prints what it
took, what it leaves to the image, and the lines for udiRoot.conf; ``check`` compares the module with an image's tree.
Errors are one line and exit status 1; wrong usage is 2. See docs/users.md, "MPI".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from runtime import __version__
from runtime.mpi_abi import ERROR, Finding, check
from runtime.mpi_collect import CollectFailed, Collection, collect, version_key

MODULES = "/opt/udiImage/modules"  # where a container has the modules, see docs/users.md

_EXAMPLES = """examples:
  prepare-mpi collect --output /opt/shifter/modules/mpich /opt/cray/pe/lib64/libmpi_gnu.so.12 \\
      --also /usr/lib64/libfabric
  prepare-mpi check /opt/shifter/modules/mpich /tmp/image-tree /app/hello
"""

_HOOK = """#!/bin/sh
# Runs in the container, as the user, before the command: says when the site's MPI cannot serve this image.
# Set SHIFTER_MPI_CHECK=0 to have it say nothing.
[ "${{SHIFTER_MPI_CHECK:-1}}" = 0 ] && exit 0
say() {{ echo "shifter: module {name}: $1; run with --module=none, or set SHIFTER_MPI_CHECK=0" >&2; exit {status}; }}
ours= other= libc= musl=
for directory in /lib /lib64 /usr/lib /usr/lib64 /usr/local/lib /usr/local/lib64 /lib/*-linux-gnu /usr/lib/*-linux-gnu
do
    for file in {ours}; do [ -e "$directory/$file" ] && ours=$directory/$file; done
    for file in libmpi.so.40 libmpi.so.20; do [ -e "$directory/$file" ] && other=$directory/$file; done
    [ -e "$directory/libc.so.6" ] && libc=$directory/libc.so.6
    for file in "$directory"/ld-musl-*; do [ -e "$file" ] && musl=$file; done
done
[ -n "$ours$other" ] || exit 0 # no MPI here, nothing to say
[ -n "$ours" ] || say "$other has another ABI than the site's MPI and is not replaced by it"
[ -n "$libc" ] || say "the site's MPI needs glibc, and this image has ${{musl:-none}}"
if command -v grep >/dev/null 2>&1; then
    grep -q {newest} "$libc" || say "the site's MPI needs {newest}, which $libc lacks"
fi
exit 0
"""


def main(argv: list[str] | None = None, configuration: str | None = None) -> int:
    """Run ``argv`` and return the exit status. ``configuration`` is not needed: nothing is read from udiRoot.conf."""
    parser = argparse.ArgumentParser(
        prog="prepare-mpi", description="Make a shifter module of a site's MPI, so that containers run with it.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"prepare-mpi {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    one = verbs.add_parser("collect", help="make the module's directory from libraries")
    one.add_argument("libraries", nargs="+", type=Path, metavar="LIBRARY", help="libmpi.so.12 and its companions")
    one.add_argument("--output", "-o", required=True, type=Path, help="the directory to make")
    one.add_argument("--name", default="mpich", help="the module's name in udiRoot.conf (default: mpich)")
    one.add_argument("--inside", help=f"its path in containers (default: {MODULES}/NAME, where copyPath puts it)")
    one.add_argument("--library-path", default="", metavar="DIR:DIR", help="directories searched as LD_LIBRARY_PATH is")
    one.add_argument(
        "--also", action="append", default=[], type=Path, metavar="PATH",
        help="plugins that are opened at run time, such as libfabric's directory (repeatable)",
    )  # fmt: skip
    one.add_argument("--strict", action="store_true", help="an image that does not fit ends the start, not only warns")
    two = verbs.add_parser("check", help="compare a module with an image's tree")
    two.add_argument("module", type=Path, help="the directory that collect made")
    two.add_argument("tree", type=Path, help="the image's files, such as unsquashfs -d makes")
    two.add_argument(
        "programs", nargs="*", metavar="PROGRAM", help="programs in the image that must find all functions"
    )
    two.add_argument("--json", action="store_true", help="print the findings as JSON")
    arguments = parser.parse_args(argv)
    try:
        return _collect(arguments) if arguments.verb == "collect" else _check(arguments)
    except (CollectFailed, OSError) as error:
        print(f"prepare-mpi: {error}", file=sys.stderr)
        return 1


def _collect(arguments: argparse.Namespace) -> int:
    inside = arguments.inside or f"{MODULES}/{arguments.name}"
    path = [*arguments.library_path.split(":"), *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    made = collect(
        arguments.libraries, arguments.output, inside, library_path=[d for d in path if d], also=arguments.also
    )
    _write_hook(made, arguments.name, strict=arguments.strict)
    (arguments.output / "report.json").write_text(json.dumps(_as_json(made), indent=2) + "\n")
    print(_report(made, arguments.name, arguments.output.absolute()), end="")
    return 0


def _write_hook(made: Collection, name: str, *, strict: bool) -> None:
    versions = [v for _, each in made.from_image for v in each if v.startswith("GLIBC_2")]
    hook = Path(made.target) / "bin" / "check.sh"
    hook.parent.mkdir()
    sonames = sorted(path.name for path in (Path(made.target) / "lib64").iterdir() if ".so." in path.name)
    text = _HOOK.format(
        name=name, status=int(strict), ours=" ".join(sonames), newest=max(versions, key=version_key, default="GLIBC_2")
    )
    hook.write_text(text)
    hook.chmod(0o755)


def _as_json(made: Collection) -> dict[str, object]:
    def rows(copied: object) -> list[dict[str, str]]:
        assert isinstance(copied, tuple)
        return [{"soname": each.soname, "source": each.source, "place": each.place} for each in copied]

    return {
        "version": 1, "inside": made.inside, "libraries": rows(made.libraries),
        "dependencies": rows(made.dependencies), "also": list(made.extras),
        "from_image": {soname: list(versions) for soname, versions in made.from_image},
    }  # fmt: skip


def _report(made: Collection, name: str, target: Path) -> str:
    lines = [f"{target}: module {name}, at {made.inside} in containers", "", "libraries (lib64):"]
    lines += [f"  {each.soname:24} from {each.source}" for each in made.libraries]
    lines += ["dependencies (lib64/dep):"]
    lines += [f"  {each.soname:24} from {each.source}" for each in made.dependencies] or ["  none"]
    if made.extras:
        lines += ["also:"] + [f"  {place}" for place in made.extras]
    lines += ["from the image, which must be as new:"]
    lines += [f"  {soname:24} {versions[-1]}" for soname, versions in made.from_image]
    lines += [
        "", "for udiRoot.conf:", f"  module_{name}_copyPath = {target}",
        f"  module_{name}_siteEnvPrepend = LD_LIBRARY_PATH={made.inside}/lib64",
        f"  module_{name}_userhook = {made.inside}/bin/check.sh", f"  defaultModules = {name}",
        "", "then check images: prepare-mpi check " + f"{target} TREE PROGRAM",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _check(arguments: argparse.Namespace) -> int:
    if not arguments.tree.is_dir():
        raise CollectFailed(f"{arguments.tree} is no directory: give an image's tree, such as unsquashfs -d makes")
    findings = check(arguments.module, arguments.tree, arguments.programs)
    if arguments.json:
        print(json.dumps([{"level": each.level, "text": each.text} for each in findings], indent=2))
    else:
        for each in findings:
            # file names out of an image must not drive the terminal
            print(f"{each.level:8} {''.join(c if c.isprintable() else '?' for c in each.text)}")
        print(_verdict(findings))
    return 1 if any(each.level == ERROR for each in findings) else 0


def _verdict(findings: list[Finding]) -> str:
    errors = sum(each.level == ERROR for each in findings)
    if errors:
        return f"not usable: {errors} error{'s' if errors > 1 else ''}"
    return "usable" if all(each.level == "ok" for each in findings) else "usable, with warnings"


if __name__ == "__main__":
    sys.exit(main())
