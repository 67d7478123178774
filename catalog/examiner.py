"""The site's examiner: a program that looks at an image's files before the image is accepted.

`examiner` in imagemanager.json names it. It gets two arguments, a directory with the image's files and the image's id, and
decides by its exit status: anything but 0 fails the pull or import, with the last line that it wrote as the reason. The
files are a copy made for it alone below ExpandDirectory, gone afterwards; what it changes there changes no image. It runs
as the gateway's user, so it must treat the files as what they are: a stranger's.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from catalog.config import Configuration
from catalog.failure import PullFailed
from catalog.publication import Publication
from catalog.record import Image, Record
from catalog.scratch import scratch as directory_below
from catalog.workers import Job, Watch

_UNPACK = {
    "squashfs": ("unsquashfs", "-no-xattrs", "-no-progress", "-quiet", "-dest", "{directory}", "{file}"),
    "erofs": ("fsck.erofs", "--extract={directory}", "{file}"),
}
_LOOK_AGAIN = 1.0  # seconds between two looks whether the attempt is still ours
_LONGEST_REASON = 300


class Examined:
    """A workers' Job that has the image of another Job examined, where the configuration names an examiner."""

    def __init__(self, job: Job, configuration: Configuration, publication: Publication) -> None:
        self._job = job
        self._configuration = configuration
        self._publication = publication

    def carry_out(self, record: Record, watch: Watch) -> Image:
        image = self._job.carry_out(record, watch)
        program = self._configuration.examiner
        if program is not None:
            platform = self._configuration.platforms[record.reference.system]
            file = self._publication.place(platform).store.path(image.object)
            watch.note("the site's examiner looks at it")
            examine(program, file, image, self._configuration.expand_directory, watch)
        return image


def examine(program: Path, file: Path, image: Image, scratch: Path, watch: Watch) -> None:
    """Unpack `file` below `scratch` and run `program` on it. Raises PullFailed when it refuses or cannot be run, and what
    `watch.check` raises when the attempt is lost meanwhile.
    """
    with directory_below(scratch) as made:
        directory = made / "tree"
        unpack = [word.format(directory=directory, file=file) for word in _UNPACK[image.format]]
        status, said = _run(unpack, watch)
        if status != 0:
            raise PullFailed(f"the image cannot be unpacked for the site's examiner: {said}")
        status, said = _run([str(program), str(directory), image.id], watch)
    if status != 0:
        raise PullFailed(f"the site's examiner refuses the image: {said}")


def _run(command: Sequence[str], watch: Watch) -> tuple[int, str]:
    """Exit status and the last line written, or how it ended."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise PullFailed(f"the site's examiner cannot be run: {command[0]}: {error.strerror}") from error
    with process:
        while True:
            try:
                written, _ = process.communicate(timeout=_LOOK_AGAIN)
                break
            except subprocess.TimeoutExpired:
                try:
                    watch.check()
                except BaseException:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise
    lines = [line for line in written.splitlines() if line.strip()]
    how = f"it ended with status {process.returncode}"
    return process.returncode, _plain(lines[-1]) if lines else how


def _plain(line: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in line.strip())[:_LONGEST_REASON]
