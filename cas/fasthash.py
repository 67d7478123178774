"""`fasthash`: prints the name that the store would give a file. BLAKE3 keeps up with the disk, so every byte counts:
no sampling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import blake3

_LARGE = 1 << 20
_PIECE = 16 << 20


def fasthash(path: Path) -> str:
    """The BLAKE3 of a file's bytes, 64 hexadecimal digits, computed on all cores. Raises OSError."""
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    if path.is_file() and path.stat().st_size >= _LARGE:
        hasher.update_mmap(path)
        return hasher.hexdigest()
    with path.open("rb") as file:
        return _stream(file)


def _stream(file: BinaryIO) -> str:
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit status 0 when every file was read, 1 when one was not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="fasthash",
        description="Print the BLAKE3 of each FILE: the name under which the image store keeps it.",
        epilog="One line a file, `HASH  FILE`, as b3sum prints it; of a single file the hash alone.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file to read, or - for standard input")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    options = parser.parse_args(arguments)
    status = 0
    for name in options.files:
        try:
            digest = _stream(sys.stdin.buffer) if name == "-" else fasthash(Path(name))
        except OSError as error:
            print(f"fasthash: {name}: {error.strerror or error}", file=sys.stderr)
            status = 1
            continue
        print(digest if len(options.files) == 1 else f"{digest}  {name}")
    return status


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        from importlib.metadata import PackageNotFoundError, version  # 45 ms, a tenth of the time for a gigabyte

        try:
            found = version("shifter")
        except PackageNotFoundError:
            found = "unknown"
        print(f"fasthash (shifter) {found}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
