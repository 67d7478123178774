"""What setupRoot is asked for: its command line as a `Request`, and the plan of the environment.

Apart from `setuproot.py`, so that an environment that was planned before is prepared without importing any of this.
"""

import os
from binascii import crc32

from runtime import planner
from runtime.channel import Launcher
from runtime.identity import caller_entry, find_user
from runtime.nodestate import Prepared, quote
from runtime.plan import Copy, PlanInvalid, Write
from runtime.reference import Reference
from runtime.refusal import StartRefused
from runtime.request import Request, parse_modules
from runtime.sidecar import ImageRecord
from runtime.udiroot import Udiroot
from runtime.view import Mounted, Node
from runtime.volumes import VolumeInvalid, check_user_volumes, parse_volumes, signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.plan import Step

HOSTS_LIMIT = 64 << 20  # bytes of /var/hostsfile: 10,000 nodes of 256 tasks need 30 MB
TEXT_LIMIT = 256 << 10  # characters that a step may carry: a record of the plan takes 1 MiB


def parse_arguments(argv: "Sequence[str]", conf: Udiroot) -> Request:
    """The request in a command line. Raises StartRefused."""
    given, words = split_options(argv)
    if len(words) != 2:
        raise StartRefused("name an image: setupRoot [options] TYPE IDENTIFIER")
    if "-u" not in given and "-U" not in given:
        raise StartRefused("name the user: -u NAME, -U UID, or both")
    name_or_uid: int | str = number(given["-U"], "-U") if "-U" in given else given["-u"]
    account = find_user(name_or_uid, conf, Node(0, 0, conf.etc_path))
    if account is None:
        raise StartRefused(f"user {given.get('-u') or given.get('-U')} has no passwd entry on this node")
    if given.get("-u", account.name) != account.name:
        raise StartRefused(f"uid {account.uid} is {account.name}, not {given['-u']}")
    gid = number(given["-G"], "-G") if "-G" in given else account.gid
    try:
        volumes = parse_volumes(given.get("-v", ""))
        check_user_volumes(volumes)
    except VolumeInvalid as error:
        raise StartRefused(str(error)) from None
    files = []
    if "-N" in given:
        files.append(("/var/hostsfile", hosts_file(given["-N"])))
    if "-s" in given:
        files.append(("/opt/udiImage/etc/user_auth.pub", given["-s"] + "\n"))
    kind = "local" if words[0] == "local" else "id"
    return Request(
        uid=account.uid,
        gid=gid,
        groups=tuple(os.getgrouplist(account.name, gid)),
        image=Reference(kind, words[1]),
        requested=f"{words[0]}:{words[1]}",
        volumes=volumes,
        modules=parse_modules(given["-m"]) if "-m" in given else None,
        prepare=True,
        verbose="-V" in given,
        inject=given.get("--inject", ""),
        files=tuple(files),
    )


def split_options(argv: "Sequence[str]") -> tuple[dict[str, str], list[str]]:
    """(option -> value, other words). By hand: importing getopt costs as much as starting Python. Raises StartRefused."""
    given: dict[str, str] = {}
    words: list[str] = []
    waiting = list(argv)[::-1]
    while waiting:
        word = waiting.pop()
        name, equals, value = word.partition("=")
        if name == "--inject" and equals:
            given[name] = value
        elif word in ("-v", "-s", "-u", "-U", "-G", "-N", "-m", "--inject"):
            if not waiting:
                raise StartRefused(f"option {word} needs a value: see setupRoot --help")
            given[word] = waiting.pop()
        elif word == "-V":
            given[word] = ""
        elif word.startswith("-") and word != "-":
            raise StartRefused(f"option {word} is not known: see setupRoot --help")
        else:
            words.append(word)
    return given, words


def number(text: str, option: str) -> int:
    """A uid or gid. Raises StartRefused."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise StartRefused(f"{option} {text!r} is not the number of a user who is not root")
    return int(text)


def hosts_file(nodes: str) -> str:
    """One line a task from "host/tasks ...", as PBS_NODEFILE has it. Raises StartRefused."""
    lines: list[str] = []
    size = 0
    for item in nodes.split():
        host, slash, count = item.partition("/")
        if not host or (slash and not (count.isascii() and count.isdigit() and len(count) < 10)):
            raise StartRefused(f"-N {item!r}: write HOST/TASKS")
        size += (len(host) + 1) * int(count or 1)
        if size > HOSTS_LIMIT:
            raise StartRefused(
                f"-N: at {item!r} /var/hostsfile would be longer than {HOSTS_LIMIT} bytes: name fewer tasks"
            )
        lines += [host] * int(count or 1)
    return "".join(line + "\n" for line in lines)


def original_record(identifier: str, user: str, volumes: str, modules: tuple[str, ...]) -> str:
    """shifterConfig.json as existing tools read it."""
    fields = {"identifier": identifier, "user": user, "volMap": volumes, "modules": ",".join(modules)}
    return "{" + ",".join(f'"{name}":{quote(value)}' for name, value in fields.items()) + "}\n"


def own_mark(request: Request) -> str:
    """What tells this job's environment from that of another job with the same image, volumes and modules."""
    texts = [text.encode(errors="surrogateescape") for _, text in request.files]
    return " ".join([str(request.gid), request.inject, *(f"{crc32(text):08x}-{len(text)}" for text in texts)])


def wanted(request: Request, conf: Udiroot) -> tuple[Request, ImageRecord, Prepared]:
    """The request with the files that describe it, the image, and what will be prepared. Raises StartRefused."""
    record = planner.choose_image(request, conf)
    modules = tuple(module.name for module in planner.choose_modules(request, conf))
    user = caller_entry(request.uid, conf, Node(0, 0, conf.etc_path))
    volumes = signature(request.volumes)
    files = (*request.files, ("/var/shifterConfig.json", original_record(record.id, user.name, volumes, modules)))
    return (
        request.changed(files=files),
        record,
        Prepared(record.id, request.uid, volumes, modules, "", own_mark(request)),
    )


def spool(plan_steps: "list[Step]", conf: Udiroot, spooled: list[str]) -> "list[Step]":
    """The steps, a text too long for one replaced by the copy of a file, of which `spooled` gets the path.

    The file is the caller's to remove when the steps are done. Raises StartRefused: no space for it.
    """
    out: list[Step] = []
    for step in plan_steps:
        if isinstance(step, Write) and len(step.text) > TEXT_LIMIT:
            path = f"{conf.loop_mount}/setup.text{len(spooled)}"
            try:
                with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                    spooled.append(path)
                    os.fchmod(file.fileno(), int(step.mode, 8))
                    file.write(step.text)
            except OSError as error:
                raise StartRefused(f"{path}: {error.strerror}: make room for {len(step.text)} bytes", True) from None
            out.append(Copy(path, step.target))
        else:
            out.append(step)
    return out


def converse(
    launcher: Launcher, request: Request, conf: Udiroot, record: ImageRecord, spooled: list[str]
) -> "list[Step]":
    """Have the launcher prepare the environment; the steps, and in `spooled` the files to remove afterwards.

    Raises StartRefused, ConnectionError.
    """
    first = planner.opening(conf, record)
    launcher.send([first])
    view = Mounted(launcher.sync())
    os.setgroups(request.groups)  # volumes are looked at as the user, with the user's groups
    rest = planner.build(request, conf, record, view, Node(request.uid, request.gid, conf.etc_path))
    rest = spool(rest, conf, spooled)
    try:
        launcher.send(rest)
    except PlanInvalid as error:
        raise StartRefused(str(error)) from None
    return [first, *rest]
