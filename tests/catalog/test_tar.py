"""The tar reader against archives of other writers, and against Python's reader on whatever both can read."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.limits import Limits
from catalog.tar import DIRECTORY, REGULAR, SYMLINK, Member, TarReader
from catalog.tar_fields import TarInvalid
from catalog.tar_write import encode
from tests.catalog.registry_fixture import directory, file, symlink, tar
from tests.requires import requires


def reader(content: bytes, bite: int = 1000) -> TarReader:
    """Reads in pieces that do not respect the blocks."""
    stream = io.BytesIO(content)
    return TarReader(lambda: stream.read(bite), Limits())


def read(content: bytes, bite: int = 1000) -> list[tuple[Member, bytes]]:
    archive, found = reader(content, bite), []
    while (member := archive.next()) is not None:
        data = b"".join(archive.pieces())
        found.append((member, data[: member.stored]))
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("bite", [1, 511, 512, 10_000_000])
def test_the_three_formats(format: int, bite: int) -> None:
    long = "d" * 90 + "/" + "f" * 90
    content = tar(
        file("a", b"x" * 700, mode=0o640, uid=5, mtime=7),
        directory("d"),
        symlink("s", "t"),
        file(long, b"y"),
        format=format,
    )
    found = read(content, bite)
    assert [(m.name, m.kind, d) for m, d in found] == [
        (b"a", REGULAR, b"x" * 700),
        (b"d/", DIRECTORY, b""),
        (b"s", SYMLINK, b""),
        (long.encode(), REGULAR, b"y"),
    ]
    assert found[0][0].mode == 0o640
    assert (found[0][0].uid, found[0][0].mtime, found[2][0].link) == (5, 7, b"t")


def test_numbers_beyond_octal_and_fractions_of_seconds() -> None:
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = read(tar(file("a", uid=3_000_000_000, mtime=1.75), format=format))[0][0]
        assert (member.uid, member.mtime) == (3_000_000_000, 1)


def test_a_member_of_more_than_8_gib_is_described() -> None:
    info = tarfile.TarInfo("big")
    info.size = 9 << 30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = reader(info.tobuf(format)).next()
        assert member is not None
        assert member.size == 9 << 30


def test_a_last_member_without_its_padding_is_whole(tmp_path: Path) -> None:
    """As umoci's insert writes it."""
    content = tar(file("a", b"first"), file("b", b"hi\n"))[: 512 * 3 + 3]
    assert [data for _, data in read(content)] == [b"first", b"hi\n"]
    archive = reader(content)
    assert [archive.next(), archive.next(), archive.next()][2] is None
    with pytest.raises(TarInvalid, match="in the middle of a member"):
        read(content[:-1])


def test_attributes_of_pax_are_read_and_written_again() -> None:
    info, _ = file("a", b"x")
    info.pax_headers = {"SCHILY.xattr.user.note": "hello", "SCHILY.xattr.security.capability": "x"}
    member, _ = read(tar((info, b"x"), format=tarfile.PAX_FORMAT))[0]
    assert member.xattrs == {b"user.note": b"hello", b"security.capability": b"x"}
    again = encode(member, b"a", b"", 0o644, {b"user.note": b"two\nlines\0"}) + b"x" + bytes(511)
    assert read(again)[0][0].xattrs == {b"user.note": b"two\nlines\0"}


def holes(tmp_path: Path) -> tuple[Path, bytes]:
    content = bytearray(3 << 20)
    for at in (0, 1 << 20, (2 << 20) + 5000):
        content[at : at + 4096] = b"x" * 4096
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        for at in (0, 1 << 20, (2 << 20) + 5000):
            out.seek(at)
            out.write(b"x" * 4096)
        out.truncate(3 << 20)
    return path, bytes(content)


@requires("tar")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_sparse_files_of_every_version(tmp_path: Path, arguments: list[str]) -> None:
    path, content = holes(tmp_path)
    archive = subprocess.run(
        ["tar", "-c", "-S", *arguments, "-C", str(tmp_path), path.name], check=True, capture_output=True
    ).stdout
    assert len(archive) < 100_000
    member, data = read(archive)[0]
    assert (member.name, member.size) == (b"sparse", 3 << 20)
    assert member.sparse is not None
    filled = bytearray(member.size)
    at = 0
    for offset, length in member.sparse:
        filled[offset : offset + length] = data[at : at + length]
        at += length
    assert bytes(filled) == content


@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(min_codepoint=33, codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=60
            ),
            st.binary(max_size=2000),
            st.integers(0, 0o7777),
            st.integers(0, 2**31),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 3000),
)
def test_it_reads_what_was_written(files: list[tuple[str, bytes, int, int]], format: int, bite: int) -> None:
    members = [file(name, data, mode=mode, uid=number, mtime=number) for name, data, mode, number in files]
    found = read(tar(*members, format=format), bite)
    assert [(m.name, d, m.mode, m.uid, m.mtime) for m, d in found] == [
        (name.encode("utf-8", "surrogateescape"), data, mode, number, number) for name, data, mode, number in files
    ]


@given(st.binary(max_size=3000))
def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes) -> None:
    with contextlib.suppress(TarInvalid):
        read(noise)


@given(st.data())
def test_a_damaged_archive_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(
        tar(
            file("a" * 90, b"x" * 600),
            symlink("s" * 120, "t" * 120),
            directory("d", uid=2**31),
            format=data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TarInvalid):
        read(bytes(content))
