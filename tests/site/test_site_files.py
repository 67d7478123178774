"""The directories of a site: made by whichever command comes first."""

import threading
from pathlib import Path

import pytest

from sim.site import Site, SiteError
from sim.site_files import Layout


def test_directories_made_by_many_at_once_are_made_once_and_open_to_all(tmp_path: Path) -> None:
    makers = 8
    failures: list[OSError] = []

    def make(layout: Layout, together: threading.Barrier) -> None:
        together.wait()
        try:
            layout.make_directories()
        except OSError as error:
            failures.append(error)

    for turn in range(20):
        layout = Layout(tmp_path / str(turn) / "site")
        together = threading.Barrier(makers)
        threads = [threading.Thread(target=make, args=(layout, together)) for _ in range(makers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert layout.bin.stat().st_mode & 0o777 == 0o755
        assert (layout.directory / "scratch").stat().st_mode & 0o7777 == 0o1777
    assert failures == []


def test_a_place_that_can_hold_no_directory_is_refused_with_the_reason(public_directory: Path) -> None:
    (public_directory / "file").touch()
    with pytest.raises(SiteError, match=r"^cannot make a site in .*/file/x: Not a directory: choose another --dir$"):
        Site.up(public_directory / "file" / "x")
