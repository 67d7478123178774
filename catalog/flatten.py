"""From layers in a store to one image file below another store's tmp/: opens, decompresses, merges, writes, verifies."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cas.store import Store
from catalog.child import LOOK
from catalog.conversion_options import ConversionOptions
from catalog.erofs import write_erofs
from catalog.failure import PullFailed
from catalog.layer_ahead import Ahead
from catalog.layer_stream import LayerStream
from catalog.layers import LayerInvalid, Merged, NeedsSurvey, Output, merge
from catalog.layers_survey import merge_surveyed
from catalog.squashfs import write_squashfs
from catalog.tar import TarReader

log = logging.getLogger("shifter.pull")


def flatten(
    layers: Store,
    names: Sequence[str],
    images: Store,
    options: ConversionOptions,
    *,
    what: str,
    check: Callable[[], None],
) -> Path:
    """Writes the image that these layers (object names, lowest first) make; returns the file, which the caller
    adopts.

    what: how messages call the image. check: may raise to end it; called about twice a second. Raises PullFailed, also
    when it takes longer than the limit.
    """
    check = _in_time(check, options.limits.conversion, what)
    for survey in (False, True):
        path = images.temporary(f".{options.format}")

        def merging(write: Callable[[bytes], object], survey: bool = survey) -> Merged:
            return merge_layers(layers, names, _checking(write, check), options, what=what, survey=survey)

        try:
            if options.format == "erofs":
                scratch = options.scratch or Path(tempfile.gettempdir())
                write_erofs(path, options.arguments, options.limits, merging, scratch, check)
            else:
                write_squashfs(path, options.squashfs(), options.workers, merging, check)
            return path
        except NeedsSurvey as reason:
            log.info("%s is merged in two passes: %s", what, reason)
    raise AssertionError("a survey needs no survey")


def merge_layers(
    layers: Store,
    names: Sequence[str],
    write: Callable[[bytes], object],
    options: ConversionOptions,
    *,
    what: str,
    survey: bool,
) -> Merged:
    """Writes the merged tar of the layers, in one pass or with a survey before.

    Raises PullFailed naming the layer, and NeedsSurvey from the one pass: what was written then is to be thrown away.
    """
    output = Output(write, options)
    unpacked: dict[int, int] = {}  # bytes of each layer, as far as it has been read; some are read twice
    with contextlib.ExitStack() as stack:

        def reader(number: int) -> TarReader:
            stack.close()  # one layer is open at a time: images may have hundreds
            others = sum(size for layer, size in unpacked.items() if layer != number)
            file = stack.enter_context(layers.open_unverified(names[number]))
            stream = LayerStream(file, layers.size(names[number]), options.limits, others=others)
            stack.callback(lambda: unpacked.__setitem__(number, stream.total))
            return TarReader(stack.enter_context(Ahead(stream.read)).read, options.limits)

        try:
            way = merge_surveyed if survey else merge
            return way(len(names), reader, output, options.limits)
        except LayerInvalid as error:
            raise PullFailed(f"layer {error.number} of {what}: {error}") from error


def _in_time(check: Callable[[], None], seconds: float, what: str) -> Callable[[], None]:
    end = time.monotonic() + seconds

    def checked() -> None:
        check()
        if time.monotonic() > end:
            raise PullFailed(
                f"{what} has not been converted within {seconds:.0f} s, which is the limit: ask the administrator for "
                "more (Pull.LongestConversionSeconds), or put fewer files into one directory"
            )

    return checked


def _checking(write: Callable[[bytes], object], check: Callable[[], None]) -> Callable[[bytes], object]:
    last = time.monotonic()

    def checked(data: bytes) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > LOOK:
            last = now
            check()
        write(data)

    return checked
