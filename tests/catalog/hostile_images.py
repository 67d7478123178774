"""A corpus of images that want harm, generated: layers, manifests and configurations, each with what its refusal must
say.

Limits here are small, so that what exceeds them is small too. A few images are odd but harmless, and must be taken.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import zstandard

from catalog.limits import Limits
from tests.catalog.registry_fixture import device, directory, file, gz, hardlink, symlink, tar, whiteout

LIMITS = Limits(
    manifest=64 << 10,
    layers=20,
    layer=8 << 20,
    unpacked=64 << 20,
    ratio=1200,
    members=2_000,
    depth=60,
    header=64 << 10,
    attempts=2,
    backoff=0.001,
)
TAKEN = None


@dataclass(frozen=True)
class HostileLayer:
    """Bytes of a layer. refusal: a part of the message, TAKEN for the harmless."""

    name: str
    content: bytes
    refusal: str | None


@dataclass(frozen=True)
class HostileDocument:
    """A manifest (as it is served) that must be refused. blobs: what it points to, by digest."""

    name: str
    content: bytes
    refusal: str
    media_type: str = "application/vnd.oci.image.manifest.v1+json"
    blobs: dict[str, bytes] = field(default_factory=dict)


def raw(name: bytes, kind: bytes = b"0", size: bytes | int = 0, link: bytes = b"", **fields: bytes) -> bytes:
    """A header block by hand; fields: raw bytes for mode, uid, gid, mtime, magic, check."""
    number = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(
        name[:100].ljust(100, b"\0")
        + fields.get("mode", b"0000644\0")
        + fields.get("uid", b"0000000\0")
        + fields.get("gid", b"0000000\0")
        + number.ljust(12, b"\0")
        + fields.get("mtime", b"00000000000\0")
        + b" " * 8
        + kind
        + link[:100].ljust(100, b"\0")
        + fields.get("magic", b"ustar\x0000")
        + bytes(247)
    )
    block[148:156] = fields.get("check", b"%06o\0 " % sum(block))
    return bytes(block)


def extended(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    return raw(b"ext", kind, len(content) if size is None else size) + content + bytes(-len(content) % 512)


def pax(**records: str) -> bytes:
    content = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + len(str(len(body)))
        length += len(str(length)) - len(str(len(body)))
        content += str(length).encode() + body
    return extended(b"x", content)


END = bytes(1024)


def escapes() -> Iterator[HostileLayer]:
    """Names that lead out, by every way of saying so, in members of every kind."""
    out = "leads out of the image"
    absolute = "has an absolute name"
    names = [
        ("../x", out),
        ("a/../../x", out),
        ("./../x", out),
        ("a/./../../x", out),
        ("..", out),
        ("../", out),
        ("a/..", out),
        ("a//../..//x", out),
        ("/etc/passwd", absolute),
        ("//etc/passwd", absolute),
        ("/../etc/passwd", absolute),
        ("/./x", absolute),
    ]
    for name, reason in names:
        for maker in (file, directory, lambda it: symlink(it, "t"), device, lambda it: hardlink(it, "b")):
            info, content = maker(name)
            yield HostileLayer(f"{name} as {info.type!r}", tar(file("b"), (info, content)), reason)
        yield HostileLayer(
            f"{name} by a GNU long name", extended(b"L", name.encode() + b"\0") + raw(b"x") + END, reason
        )
        yield HostileLayer(f"{name} by pax", pax(path=name) + raw(b"x") + END, reason)
    for name in ("../x", "a/../../etc/shadow", "..", "../../../../../../etc/passwd"):
        yield HostileLayer(f"hard link to {name}", tar(hardlink("l", name)), out)
        yield HostileLayer(f"hard link by pax to {name}", pax(linkpath=name) + raw(b"l", b"1") + END, out)
        yield HostileLayer(f"whiteout beside {name}", tar(file(f"{name}/.wh.x")), out)
    yield HostileLayer("whiteout of nothing", tar(file("a/.wh.")), "names nothing")
    yield HostileLayer("whiteout of the parent", tar(file("a/.wh...")), "names nothing")
    yield HostileLayer("whiteout of itself", tar(file("a/.wh..")), "names nothing")
    yield HostileLayer("a root that is a link", tar(symlink("./", "/etc")), "root of the image is not a directory")
    yield HostileLayer("a root that is a file", raw(b".") + END, "root of the image is not a directory")
    yield HostileLayer("prefix that leads out", _prefixed(b"../.."), out)
    yield HostileLayer("prefix that is absolute", _prefixed(b"/etc"), absolute)
    yield HostileLayer("a backslash is a letter", tar(file("..\\..\\x")), TAKEN)
    yield HostileLayer("dots are letters", tar(file(".../x"), file("a..b")), TAKEN)
    yield HostileLayer("symlinks may lead anywhere", tar(symlink("l", "../../../etc/shadow"), symlink("m", "/")), TAKEN)


def _prefixed(prefix: bytes) -> bytes:
    block = bytearray(raw(b"x"))
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + END


def links() -> Iterator[HostileLayer]:
    loop = [symlink("a", "b"), symlink("b", "a")]
    circle = "symbolic links that lead in a circle"
    yield HostileLayer("a file behind a loop", tar(*loop, file("a/x")), circle)
    yield HostileLayer("a link to itself", tar(symlink("a", "a"), file("a/x")), circle)
    yield HostileLayer("a hard link behind a loop", tar(*loop, hardlink("x", "a/y")), circle)
    yield HostileLayer("a whiteout behind a loop", tar(*loop, file("z"), file("z"), whiteout("a/x")), circle)
    yield HostileLayer("a hard link to itself", tar(hardlink("x", "x")), "which is not there")
    yield HostileLayer("a hard link to what comes later", tar(hardlink("x", "y"), file("y")), "which is not there")
    yield HostileLayer("hard links in a circle", tar(hardlink("x", "y"), hardlink("y", "x")), "which is not there")
    yield HostileLayer("a hard link to a directory", tar(directory("d"), hardlink("x", "d")), "the directory d")
    yield HostileLayer("a hard link to the root", tar(hardlink("x", ".")), "the directory")
    yield HostileLayer("a hard link without a target", raw(b"x", b"1") + END, "the directory")
    yield HostileLayer("a symlink without a target", raw(b"x", b"2") + END, "has a target of 0 bytes")
    long = "/".join(["x" * 200] * 30)
    yield HostileLayer("a symlink to far away", tar(symlink("x", long)), "has a target of 6029 bytes")
    chain = [symlink(f"l{n}", f"l{n + 1}") for n in range(300)]
    yield HostileLayer("a chain of 300 links", tar(*chain, directory("l300"), file("l0/x")), circle)
    deep = [symlink("l", "/".join(["d"] * 40)), file("l/" + "/".join(["e"] * 40))]
    yield HostileLayer("depth by way of links", tar(*deep), "too deep behind symbolic links")
    farm = [symlink(f"f{n}", f"f{(n + 1) % 500}/x") for n in range(500)]
    yield HostileLayer("a farm of links", tar(*farm, file("f0/y")), circle)
    yield HostileLayer("a way out by links stays inside", tar(symlink("l", "../../.."), file("l/x")), TAKEN)
    yield HostileLayer("a link to the root stays inside", tar(symlink("l", "/"), file("l/l/l/x")), TAKEN)
    yield HostileLayer("an absolute hard link is the image's own", tar(file("a"), hardlink("x", "/a")), TAKEN)


def bombs() -> Iterator[HostileLayer]:
    over = "allowed are"
    yield HostileLayer(
        "more members than allowed", tar(*(file(f"f{n}") for n in range(2_100))), "more than 2000 members"
    )
    yield HostileLayer("a file larger than allowed", raw(b"x", size=65 << 20) + END, over)
    yield HostileLayer("a file of exabytes", raw(b"x", size=b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7) + END, over)
    yield HostileLayer("a file of more than 63 bits", raw(b"x", size=b"\x80" + b"\xff" * 11) + END, "63 bits")
    yield HostileLayer("a size below zero", raw(b"x", size=b"\xff" * 12) + END, "negative size")
    yield HostileLayer("a size by pax of exabytes", pax(size="9223372036854775807") + raw(b"x") + END, over)
    yield HostileLayer("a size by pax below zero", pax(size="-5") + raw(b"x") + END, "negative size")
    yield HostileLayer("a size by pax that is none", pax(size="5x") + raw(b"x") + END, "is no number")
    yield HostileLayer("a size by pax without end", pax(size="9" * 100) + raw(b"x") + END, "is no number")
    for depth in (61, 100, 1000):
        yield HostileLayer(f"{depth} directories deep", tar(file("/".join("d" * (depth + 1)))), "deep")
    yield HostileLayer("a part of 256 bytes", tar(file("n" * 256)), "part of more than 255")
    yield HostileLayer("a name of 5000 bytes", tar(file("/".join(["n" * 200] * 25))), "allowed are 4095")
    yield HostileLayer(
        "a long name of 10 MB", extended(b"L", b"n/" * 10, 10 << 20) + END, "extended header is 10485760 bytes"
    )
    yield HostileLayer(
        "a long link of 10 MB", extended(b"K", b"n/" * 10, 10 << 20) + END, "extended header is 10485760 bytes"
    )
    yield HostileLayer(
        "a pax header of 10 MB", extended(b"x", b"", 10 << 20) + END, "extended header is 10485760 bytes"
    )
    yield HostileLayer(
        "many long names for one member", extended(b"L", b"n" * 1000) * 200 + END, "of one member exceed"
    )
    yield HostileLayer(
        "attributes without measure", pax(SCHILY__xattr__user__a="x" * 60_000) * 3 + END, "of one member exceed"
    )
    sparse = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__name": "s"}
    huge = pax(**sparse, GNU__sparse__realsize=str(1 << 50)) + raw(b"x", size=512) + b"0\n".ljust(512, b"\0") + END
    yield HostileLayer("a sparse file of a petabyte", huge, over)
    for text, reason in [
        (b"1\n5\n10\n", "other bytes than its map"),
        (b"1\n0\n99999999\n", "lie outside of it"),
        (b"2\n10\n5\n0\n5\n", "overlap"),
        (b"99999999\n", "too many pieces"),
        (b"x\n", "is no number"),
        (b"-1\n", "is no number"),
        (b"1" * 512, "ends in its map"),
    ]:
        body = text.ljust(512, b"\0")
        layer = pax(**sparse, GNU__sparse__realsize="1000") + raw(b"x", size=512) + body + END
        yield HostileLayer(f"a sparse map {text[:12]!r}", layer, reason)
    half = pax(GNU__sparse__map="1,2,3", GNU__sparse__size="10") + raw(b"x", size=2) + bytes(512) + END
    yield HostileLayer("half a sparse piece", half, "half a piece")
    unsized = pax(GNU__sparse__map="0,0") + raw(b"x") + END
    yield HostileLayer("a sparse file without a size", unsized, "without a size")
    unknown = pax(GNU__sparse__major="7", GNU__sparse__minor="1") + raw(b"x") + END
    yield HostileLayer("a sparse file of another version", unknown, "unknown version 7.1")
    yield HostileLayer("old sparse without GNU", raw(b"x", b"S") + END, "no GNU header")
    zeros = bytes(100 << 20)
    stream = raw(b"x", size=63 << 20) + zeros[: 63 << 20] + raw(b"y", size=63 << 20) + zeros[: 63 << 20] + END
    unpacks = "unpacks to more than 67108864 bytes"
    yield HostileLayer("a gzip bomb", gzip.compress(stream, 6), unpacks)
    yield HostileLayer("a zstd bomb", zstandard.compress(stream), unpacks)
    window = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=30))
    yield HostileLayer(
        "a zstd window of 1 GiB", window.stream_reader(io.BytesIO(stream)).read(), "zstd data are damaged"
    )


def damage() -> Iterator[HostileLayer]:
    good = tar(file("a", b"x" * 1000), file("b", b"y" * 1000))
    middle = "in the middle of a member"
    for cut in (1, 100, 511, 513, 600, 1024, 1400, 1537, 1600, 2500):
        yield HostileLayer(f"cut after {cut} bytes", good[:cut], middle)
    packed = gz(good)
    yield HostileLayer("gzip cut", packed[:-20], "gzip data end before they are complete")
    yield HostileLayer("gzip cut in its end", packed[:-3], "gzip data end before they are complete")
    yield HostileLayer("gzip with a wrong checksum", packed[:-8] + b"\0\0\0\0" + packed[-4:], "gzip data are damaged")
    yield HostileLayer("gzip with a wrong length", packed[:-4] + b"\1\2\3\4", "gzip data are damaged")
    yield HostileLayer("gzip with something behind it", packed + b"something else", "something follows the end")
    yield HostileLayer("gzip with zeros behind it", packed + bytes(1000), TAKEN)
    yield HostileLayer("gzip of garbage", gzip.compress(b"\x01garbage" * 200), "checksum")
    yield HostileLayer("gzip head alone", b"\x1f\x8b", "gzip data end")
    yield HostileLayer("gzip of an unknown method", b"\x1f\x8b\x07" + bytes(600), "gzip data are damaged")
    yield HostileLayer(
        "zstd cut", zstandard.compress(tar(file("a", random.Random(1).randbytes(5000))))[:3000], "zstd data end"
    )
    yield HostileLayer("zstd cut in its end", zstandard.compress(good)[:-1], "zstd data end")
    yield HostileLayer(
        "zstd with something behind it", zstandard.compress(good) + b"x" * 9, "something follows the end"
    )
    yield HostileLayer(
        "zstd with half a skippable frame", zstandard.compress(good) + b"\x50\x2a\x4d\x18\xff\0\0\0", "zstd data end"
    )
    yield HostileLayer("zstd damaged", b"\x28\xb5\x2f\xfd" + b"\xff" * 600, "zstd data are damaged")
    yield HostileLayer("bzip2", b"BZh91AY&SY" + bytes(600), "compressed with bzip2")
    yield HostileLayer("xz", b"\xfd7zXZ\0" + bytes(600), "compressed with xz")
    yield HostileLayer("lz4", b"\x04\x22\x4d\x18" + bytes(600), "compressed with lz4")
    yield HostileLayer("text", b"<html>not found</html>" * 50, "checksum")
    yield HostileLayer("ELF", b"\x7fELF" + bytes(range(256)) * 4, "checksum")
    yield HostileLayer("one byte", b"x", middle)
    yield HostileLayer("one block of zeros, then a member", bytes(512) + good, "follows a block of zeros")
    yield HostileLayer("members behind the end", good + raw(b"../x"), TAKEN)
    yield HostileLayer("nothing", b"", TAKEN)
    yield HostileLayer("zeros", END, TAKEN)
    yield HostileLayer("a wrong checksum", raw(b"x", check=b"000000\0 ") + END, "wrong checksum")
    yield HostileLayer("a checksum that is none", raw(b"x", check=b"zzzzzz\0 ") + END, "is no number")
    for key, value in [
        ("mode", b"9999999\0"),
        ("mode", b"-000644\0"),
        ("mode", b"0x00644\0"),
        ("mode", b"0_00644\0"),
        ("uid", b"abcdefg\0"),
        ("gid", b"00 0000\0"),
        ("mtime", b"0000000000a\0"),
    ]:
        yield HostileLayer(f"the {key} {value!r}", raw(b"x", **{key: value}) + END, "is no number")
    yield HostileLayer("a size with a letter", raw(b"x", size=b"0000000000z\0") + END, "is no number")
    yield HostileLayer("an owner beyond 32 bits", raw(b"x", uid=b"\x80\0\0\1\0\0\0\0") + END, "which cannot be")
    yield HostileLayer("an owner below zero", raw(b"x", uid=b"\xff" * 8) + END, "which cannot be")
    yield HostileLayer("an owner by pax beyond", pax(uid="4294967295") + raw(b"x") + END, "which cannot be")
    yield HostileLayer("no name", raw(b"") + END, "has no name")
    yield HostileLayer("no name by GNU", extended(b"L", b"\0") + raw(b"x") + END, "has no name")
    yield HostileLayer("an unknown type", raw(b"x", b"Q") + END, "unknown type")
    yield HostileLayer("several volumes", raw(b"x", b"M") + END, "unknown type")
    yield HostileLayer("a volume label", raw(b"x", b"V") + END, "unknown type")
    yield HostileLayer("an extended header at the end", pax(path="x") + END, "ends after an extended header")
    yield HostileLayer("an extended header and nothing", pax(path="x"), "ends after an extended header")
    for content in (
        b"5 a\n",
        b"99 path=x\n",
        b"x path=y\n",
        b" path=x\n",
        b"10 path=xyz",
        b"7 =abc\n",
        b"-5 a=b\n",
        b"0 a=b\n",
    ):
        yield HostileLayer(
            f"the pax record {content!r}", extended(b"x", content) + raw(b"x") + END, "extended header is"
        )
    yield HostileLayer("a zero byte in a pax path", extended(b"x", b"12 path=a\0b\n") + raw(b"x") + END, "zero byte")
    yield HostileLayer("a global pax header", extended(b"g", b"11 path=..\n") + raw(b"x") + END, TAKEN)
    yield HostileLayer("a time before 1970", raw(b"x", mtime=b"\xff" * 12) + END, TAKEN)
    yield HostileLayer("a time in the year 3000", pax(mtime="32503680000.5") + raw(b"x") + END, TAKEN)
    for name in (b"a\nb", b"\xff\xfe", "e\u0301/\u202ex".encode(), b"con", b"A", b"a ", b"$(reboot)", b"*", b"-rf"):
        yield HostileLayer(f"the name {name!r}", tar(file(name)), TAKEN)
    yield HostileLayer("names that differ in case", tar(file("a"), file("A")), TAKEN)
    yield HostileLayer("names that look the same", tar(file("\u00e9"), file("e\u0301")), TAKEN)
    yield HostileLayer("a name twice as file and directory", tar(file("a", b"1"), directory("a"), file("a/b")), TAKEN)
    yield HostileLayer("devices and setuid", tar(device("d"), file("s", b"x", mode=0o6755)), TAKEN)


def layers() -> list[HostileLayer]:
    return [*escapes(), *links(), *bombs(), *damage()]


def documents() -> list[HostileDocument]:
    """Manifests and indexes that must be refused; the digest of each is what it is, only its sense is bad."""
    digest = "sha256:" + "0" * 64
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2}
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 2}
    good: dict[str, Any] = {"schemaVersion": 2, "config": config, "layers": [layer]}
    index = "application/vnd.oci.image.index.v1+json"

    def manifest(name: str, refusal: str, **changes: Any) -> HostileDocument:
        return HostileDocument(name, json.dumps({**good, **changes}).encode(), refusal)

    def bad_layer(name: str, refusal: str, **changes: Any) -> HostileDocument:
        return manifest(name, refusal, layers=[{**layer, **changes}])

    entry = {"mediaType": good.get("mediaType", "x"), "digest": digest, "size": 2}
    return [
        HostileDocument("no JSON", b"<html>", "is not JSON"),
        HostileDocument("nothing", b"", "is not JSON"),
        HostileDocument("a list", b"[]", "is not a JSON object"),
        HostileDocument("no UTF-8", b'{"a": "\xff\xfe"}', "is not JSON"),
        HostileDocument("nested without end", b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "is not JSON"),
        HostileDocument("a number without end", b'{"schemaVersion": ' + b"9" * 20_000 + b"}", "is not JSON"),
        HostileDocument("larger than allowed", b'{"a": "' + b"x" * 70_000 + b'"}', "larger than 65536 bytes"),
        manifest("no version", "has no schemaVersion 2", schemaVersion=None),
        manifest("schema 1", "schema 1, which is obsolete", schemaVersion=1),
        manifest("schema 3", "has no schemaVersion 2", schemaVersion=3),
        manifest("an unknown type", "no container image but an artifact", config={**config, "mediaType": "x/y"}),
        manifest(
            "an artifact",
            "an artifact of type 'application/vnd.wasm'",
            config={**config, "mediaType": "application/vnd.oci.empty.v1+json"},
            artifactType="application/vnd.wasm",
        ),
        manifest("no configuration", "is malformed: it is not an object", config=None),
        manifest("a large configuration", "allowed are 65536", config={**config, "size": 1 << 40}),
        manifest("layers that are no list", "not a list", layers={"a": layer}),
        manifest("a layer that is no object", "is malformed: it is not an object", layers=["x"]),
        manifest("layers without end", "has 21 layers, allowed are 20", layers=[layer] * 21),
        bad_layer("a path as digest", "only sha256 with 64", digest="sha256:../../../etc/passwd"),
        bad_layer("another algorithm", "only sha256 with 64", digest="md5:" + "0" * 32),
        bad_layer("a short digest", "only sha256 with 64", digest="sha256:abc"),
        bad_layer("upper case", "only sha256 with 64", digest="sha256:" + "A" * 64),
        bad_layer("a digest with a line", "only sha256 with 64", digest=digest + "\n"),
        bad_layer("a number as digest", "only sha256 with 64", digest=5),
        bad_layer("a size below zero", "has the size '-1'", size=-1),
        bad_layer("a size as text", "has the size '5', which is none", size="5"),
        bad_layer("true as size", "has the size 'True'", size=True),
        bad_layer("a fraction as size", "has the size '1.5'", size=1.5),
        bad_layer("a layer of petabytes", "allowed are 8388608", size=1 << 50),
        bad_layer(
            "an unknown layer type",
            "of the unknown type 'application/x-executable'",
            mediaType="application/x-executable",
        ),
        bad_layer(
            "an encrypted layer", "is encrypted", mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
        ),
        bad_layer("no layer type", "of the unknown type", mediaType=None),
        HostileDocument(
            "an index of nothing", b'{"schemaVersion": 2, "manifests": []}', "available: none for Linux", index
        ),
        HostileDocument("an index that is none", b'{"schemaVersion": 2, "manifests": 5}', "not a list", index),
        HostileDocument(
            "an index with a bad entry", b'{"schemaVersion": 2, "manifests": [5]}', "it is not an object", index
        ),
        HostileDocument(
            "an index for another system",
            json.dumps(
                {"schemaVersion": 2, "manifests": [{**entry, "platform": {"os": "windows", "architecture": "amd64"}}]}
            ).encode(),
            "available: none for Linux",
            index,
        ),
        HostileDocument(
            "an index with a bad platform",
            json.dumps({"schemaVersion": 2, "manifests": [{**entry, "platform": 5}]}).encode(),
            "a platform is not an object",
            index,
        ),
        HostileDocument(
            "an index with a large manifest",
            json.dumps({"schemaVersion": 2, "manifests": [{**entry, "size": 1 << 40, "platform": {}}]}).encode(),
            "allowed are 65536",
            index,
        ),
    ]


def configurations() -> list[tuple[str, bytes, str]]:
    """Image configurations: name, bytes, refusal."""
    return [
        ("no JSON", b"x", "is not JSON"),
        ("a list", b"[]", "is not a JSON object"),
        ("config is a list", b'{"config": [5]}', "config is not an object"),
        ("Env is a text in a list of numbers", b'{"config": {"Env": [5]}}', "Env in the configuration"),
        ("Env with a zero byte", b'{"config": {"Env": ["a=\\u0000"]}}', "Env in the configuration"),
        ("Cmd is an object", b'{"config": {"Cmd": {}}}', "Cmd in the configuration"),
        ("Entrypoint is a number", b'{"config": {"Entrypoint": 5}}', "Entrypoint in the configuration"),
        ("Labels are numbers", b'{"config": {"Labels": {"a": 5}}}', "Labels are not texts"),
        ("another architecture", b'{"architecture": "../../x"}', "is not made for amd64"),
        ("nested without end", b"[" * 30_000, "is not JSON"),
    ]
