"""How an image file is to be written: the format, the writer's settings, and what of the image's contents is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from catalog.limits import Limits


class OptionsInvalid(ValueError):
    """ConverterOptions that cannot be carried out; the text names the word and those that are understood."""


@dataclass(frozen=True)
class Squashfs:
    """Settings of the squashfs writer. block: bytes of a data block. level: None leaves the compressor's own default."""

    compressor: str = "zstd"
    level: int | None = 3
    block: int = 128 << 10


_COMPRESSORS = ("gzip", "lz4", "lzo", "xz", "zstd")
_DEFAULT_LEVEL = {"zstd": 3}
# Words of mksquashfs that sites have in their configurations and that change nothing here: they say what is done
# anyway.
_ALREADY = {"-noappend", "-no-progress", "-quiet", "-no-xattrs", "-no-exports", "-no-recovery", "-root-owned-no"}


@dataclass(frozen=True)
class ConversionOptions:
    """What decides the bytes of an image file, beside the layers. Equal options and layers give equal bytes.

    format: "squashfs" or "erofs". arguments: `ConverterOptions` of the configuration, in the words of mksquashfs (or
    of mkfs.erofs). keep_user_xattrs: keep `user.*` attributes; `security.*` and `trusted.*` never are. keep_setuid:
    keep the bits, of which a nosuid mount makes nothing. workers: threads that compress; does not change the bytes.
    scratch: where a format that needs an unpacked tree unpacks it; None: where temporary files go.
    """

    format: str = "squashfs"
    arguments: tuple[str, ...] = ()
    keep_user_xattrs: bool = False
    keep_setuid: bool = False
    limits: Limits = field(default_factory=Limits)
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    scratch: Path | None = None

    @property
    def writer(self) -> str:
        """The program that writes this format."""
        return "mkfs.erofs" if self.format == "erofs" else "tar2sqfs"

    def squashfs(self) -> Squashfs:
        """The writer's settings that the arguments ask for. Raises OptionsInvalid."""
        compressor, level, block = "zstd", None, 128 << 10
        words = iter(self.arguments)
        for word in words:
            if word in _ALREADY:
                continue
            value = next(words, "")
            if word == "-comp" and value in _COMPRESSORS:
                compressor = value
            elif word == "-Xcompression-level" and value.isascii() and value.isdigit():
                level = int(value)
            elif word == "-b" and (size := _size(value)):
                block = size
            elif word == "-processors" and value.isdigit():
                pass  # all cores are used; it changes no bytes
            else:
                raise OptionsInvalid(
                    f"ConverterOptions: {(word + ' ' + value).strip()!r} is not understood; known are -comp "
                    f"{'|'.join(_COMPRESSORS)}, -Xcompression-level N, -b SIZE, -processors N, {', '.join(sorted(_ALREADY))}"
                )
        return Squashfs(compressor, _DEFAULT_LEVEL.get(compressor) if level is None else level, block)


def _size(text: str) -> int:
    """The block size in bytes; 0 when it is none that squashfs has (a power of two from 4 KiB to 1 MiB)."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in {"K", "M"} else (text, "")
    if not (number.isascii() and number.isdigit()):
        return 0
    size = int(number) << {"": 0, "K": 10, "M": 20}[unit]
    return size if 4096 <= size <= 1 << 20 and size & (size - 1) == 0 else 0
