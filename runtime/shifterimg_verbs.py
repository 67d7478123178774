"""What each verb of shifterimg does: ask the gateway, print the answer, return the exit status.

``RUN`` maps a verb's name to its function. Output that other programs read (``images``, ``lookup``, the line of
``pull``) has the form that the original client gave it; everything else has ``--json``. Errors are raised, not
printed: ``runtime/shifterimg.py`` turns them into a line and a status.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys

from runtime import credentials, reference
from runtime.gateway import NotAllowed, NotFound, one_line
from runtime.record import Record
from runtime.shifterimg_usage import UsageError
from runtime.shifterimg_wait import ImageFailed, reason, wait
from runtime.terminal import Progress, local_time, size, zoned_time

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.gateway import Gateway
    from runtime.shifterimg_usage import Command

LOGIN_TIMEOUT = 60.0  # seconds: the gateway asks the registry meanwhile
PAGE = 500  # events asked for at a time
FORMATS = ("squashfs", "oci-layout", "docker-archive")


class NoResult(Exception):
    """The verb has failed for a reason that is no fault of the gateway's; the text is for the user."""


class Session(Record):
    """What a verb works with."""

    gateway: Gateway
    command: Command
    default_kind: str

    @property
    def image(self) -> reference.Reference:
        """The image that the last argument names. Raises UsageError."""
        return self.parse(self.command.arguments[-1])

    def parse(self, text: str) -> reference.Reference:
        try:
            return reference.parse(text, self.default_kind)
        except reference.ReferenceInvalid as error:
            raise UsageError(str(error)) from None

    def access(self) -> dict[str, list[int]]:
        """The numbers of --user and --group. Raises UsageError that names every unknown one."""
        unknown: list[str] = []
        uids = [_number(name, _uid, "user", unknown) for name in self.command.items("user")]
        gids = [_number(name, _gid, "group", unknown) for name in self.command.items("group")]
        if unknown:
            raise UsageError("unknown " + ", ".join(unknown) + "; nothing was asked of the gateway")
        return {"uids": uids, "gids": gids}


def images(session: Session) -> int:
    records = session.gateway.images(_zoned(session.command.value("as-of")))
    if session.command.has("json"):
        return _json(records)
    lines = [(tag, record) for record in records for tag in _tags(record)]
    for tag, record in sorted(lines, key=lambda line: line[0]):
        pulled = record.get("last_pull")
        when = local_time(pulled) if isinstance(pulled, (int, float)) else "-"
        system, kind, status, identifier = (str(record.get(key, "")) for key in ("system", "itype", "status", "id"))
        tag = one_line(tag)
        print(f"{system:<10} {kind:<10} {status:<8} {identifier[:10]:<.10}   {when:<19} {tag:<30}")
    return 0


def lookup(session: Session) -> int:
    image = session.image
    try:
        record = session.gateway.lookup(image.kind, image.tag)
    except NotFound as error:
        text = f"{image}: no such image, or it is not visible to you; 'shifterimg pull {image}' fetches it"
        if error.unsigned:
            text = f"{image}: not visible to somebody unknown, as whom you had to ask: {error.unsigned}"
        raise NotFound(text, error.reasons) from None
    if session.command.has("json"):
        return _json(record)
    print(record["id"])
    return 0


def pull(session: Session) -> int:
    return _pull(session, blocking=True)


def pull_and_leave(session: Session) -> int:
    return _pull(session, blocking=False)


def _pull(session: Session, *, blocking: bool) -> int:
    image, access = session.image, session.access()
    try:
        saved = credentials.read(session.gateway.system)
    except credentials.CredentialsError as error:  # most images need none
        print(f"shifterimg: {error}; going on without your registry credentials", file=sys.stderr)
        saved = {}

    def ask() -> dict[str, Any]:
        return session.gateway.pull(image.kind, image.tag, **access, credentials=saved)

    return _follow(session, ask, "Pulling", image, blocking=blocking)


def import_file(session: Session) -> int:
    path, image = os.path.abspath(session.command.arguments[0]), session.image
    access = session.access()
    format = session.command.value("format") or _format_of(path)
    if format not in FORMATS:
        raise UsageError(f"--format {format}: known are {', '.join(FORMATS)}")

    def ask() -> dict[str, Any]:
        return session.gateway.import_image(image.kind, image.tag, path, format, **access)

    return _follow(session, ask, "Importing", image, blocking=True)


def _follow(
    session: Session, ask: Callable[[], dict[str, Any]], doing: str, image: reference.Reference, *, blocking: bool
) -> int:
    """Show how a pull or an import goes; to its end when ``blocking``."""
    command = session.command
    stream = sys.stderr if command.has("json") else sys.stdout
    progress = Progress(stream, doing, str(image), lines=command.has("verbose"))
    try:
        if blocking:
            record = wait(ask, progress)
        else:
            record = ask()
            progress.show(str(record["status"]), record.get("progress"))
            if record["status"] == "FAILURE":
                raise ImageFailed(reason(record))
    except ImageFailed as error:
        raise NoResult(f"{image} failed: {error}") from None
    finally:
        progress.end()
    return _json(record) if command.has("json") else 0


def login(session: Session) -> int:
    location = (session.command.arguments or ("default",))[0]
    user, password = _ask_login(location, session.command.value("username"))
    credential = session.gateway.seal(f"{user}:{password}".encode())
    session.gateway.timeout = max(session.gateway.timeout, LOGIN_TIMEOUT)
    session.gateway.check_login(location, {location: credential})
    file = credentials.save(session.gateway.system, location, credential)
    if session.command.has("verbose"):
        print(f"saved in {file}")
    return 0


def remove(session: Session) -> int:
    names = [session.parse(text) for text in session.command.arguments]
    answers = []
    try:
        for image in names:
            answers.append(session.gateway.remove(image.kind, image.tag))
            if not session.command.has("json"):
                print(f"removed {image}")
                _unsettled(answers[-1])
    finally:  # what is gone is said, also when the next one could not be removed
        if session.command.has("json"):
            _json(answers)
    return 0


def _unsettled(answer: dict[str, Any]) -> None:
    """Says when nodes do not know of a change yet: who was shut out could still start the image there."""
    if answer.get("settled") is False:
        print(f"shifterimg: note: {answer.get('status_message') or 'not all nodes know it yet'}", file=sys.stderr)


def acl(session: Session) -> int:
    image, access = session.image, session.access()
    public = session.command.has("public")
    if public and (access["uids"] or access["gids"]):
        raise UsageError("--public leaves no room for --user and --group: give the one or the others")
    if public or access["uids"] or access["gids"]:
        session.gateway.set_access(image.kind, image.tag, **access)
    answer = session.gateway.access(image.kind, image.tag)
    if session.command.has("json"):
        return _json(answer)
    print(f"{image}: {'private' if answer.get('private') else 'public'}")
    _unsettled(answer)
    if answer.get("private"):
        print("users:  " + (", ".join(_named(uid, _user_name) for uid in _ids(answer.get("userACL"))) or "none"))
        print("groups: " + (", ".join(_named(gid, _group_name) for gid in _ids(answer.get("groupACL"))) or "none"))
    return 0


def history(session: Session) -> int:
    command = session.command
    limit_text = command.value("limit") or "100"
    if not (limit_text.isascii() and limit_text.isdigit() and int(limit_text) > 0):
        raise UsageError(f"--limit {limit_text}: give a number above 0")
    limit, before = int(limit_text), None
    events: list[dict[str, Any]] = []
    while len(events) < limit:  # the latest page comes first
        page = session.gateway.history(
            image=str(session.image) if command.arguments else None, user=command.value("by"),
            action=command.value("action"), since=_zoned(command.value("since")),
            until=_zoned(command.value("until")),
            limit=min(PAGE, limit - len(events)), before=before,
        )  # fmt: skip
        entries = page.get("list")
        entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        events[:0] = entries
        before = page.get("next")
        if before is None or not entries:
            break
    if command.has("json"):
        return _json(events)
    for event in events:
        if event.get("action") == "stage" and not command.has("verbose"):
            continue  # how a pull went on; that it began, and how it ended, are events of their own
        when = event.get("time")
        texts = [str(event.get(key) or "-") for key in ("user", "action", "image")]
        line = f"{zoned_time(when) if isinstance(when, (int, float)) else '-'} {texts[0]:<10} {texts[1]:<15} {texts[2]}"
        print(f"{line}  {one_line(str(event['detail']))}" if event.get("detail") else line)
    return 0


def queue(session: Session) -> int:
    entries = session.gateway.queue()
    if session.command.has("json"):
        return _json(entries)
    for entry in entries:
        progress = entry.get("progress")
        more = ""
        if isinstance(progress, dict) and progress.get("total"):
            more = f"{size(progress.get('done') or 0)} of {size(progress['total'])}"
        elif entry.get("status") == "FAILURE":
            more = reason(entry)
        print(f"{entry.get('status', ''):<12} {entry.get('image', '')}" + (f"  {more}" if more else ""))
    return 0


def restore(session: Session) -> int:
    image = session.image
    answer = session.gateway.restore(image.kind, image.tag)
    return _json(answer) if session.command.has("json") else _say(f"restored {image}")


def expire(session: Session) -> int:
    image = session.image
    answer = session.gateway.expire(image.kind, image.tag)
    if answer.get("status") is None:
        raise NotFound(f"{image}: no such image")
    if answer.get("status") is not True:
        raise _not_administrator()
    _unsettled(answer)
    return _json(answer) if session.command.has("json") else _say(f"expired {image}")


def autoexpire(session: Session) -> int:
    answer = session.gateway.autoexpire(dry_run=session.command.has("dry-run"))
    identifiers = answer.get("status")
    if not isinstance(identifiers, list):
        raise _not_administrator()
    if session.command.has("json"):
        return _json(answer)
    names = answer.get("images")
    names = names if isinstance(names, list) and len(names) == len(identifiers) else [""] * len(identifiers)
    for identifier, name in zip(identifiers, names, strict=True):
        print(one_line(f"{identifier} {name}"))
    return 0


RUN: dict[str, Callable[[Session], int]] = {
    "images": images, "lookup": lookup, "pull": pull, "pullnb": pull_and_leave, "login": login, "rm": remove, "restore": restore,
    "import": import_file, "acl": acl, "history": history, "queue": queue, "expire": expire, "autoexpire": autoexpire,
}  # fmt: skip


def _zoned(text: str | None) -> str | None:
    """A time that the user gave without a zone is the user's own time, not the gateway's; `2h` (ago) stays as it is."""
    if text is None:
        return None
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.astimezone()).isoformat()
    except (ValueError, OverflowError):
        return text  # the gateway knows further forms, and says which when it does not


def _not_administrator() -> NotAllowed:
    return NotAllowed("only an administrator of this system may do that")


def _say(line: str) -> int:
    print(line)
    return 0


def _json(value: object) -> int:
    import json  # 5 ms, for those who want it

    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _tags(record: dict[str, Any]) -> list[str]:
    tags = record.get("tag")
    return [str(tag) for tag in tags] if isinstance(tags, list) else [str(tags)]


def _ids(value: object) -> list[int]:
    return [int(number) for number in value if isinstance(number, int)] if isinstance(value, list) else []


def _named(number: int, name: Callable[[int], str]) -> str:
    try:
        return f"{name(number)} ({number})"
    except KeyError:
        return str(number)


def _user_name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


def _group_name(gid: int) -> str:
    return grp.getgrgid(gid).gr_name


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _number(name: str, find: Callable[[str], int], what: str, unknown: list[str]) -> int:
    """The id that a name or a number says; an unknown name is added to ``unknown``."""
    try:
        return find(name)
    except (KeyError, ValueError):
        if name.isascii() and name.isdigit() and int(name) < 2**32 - 1:
            return int(name)
    unknown.append(f"{what} {name!r}")
    return -1


def _format_of(path: str) -> str:
    """The format that a file's name or kind suggests."""
    if os.path.isdir(path) or path.endswith(".oci.tar"):
        return "oci-layout"
    if path.endswith((".tar", ".tar.gz", ".tgz")):
        return "docker-archive"
    if path.endswith((".squashfs", ".sqsh", ".sqfs", ".sif.squashfs")):
        return "squashfs"
    raise UsageError(f"{path}: its name does not say what it is: give --format {'|'.join(FORMATS)}")


def _ask_login(location: str, user: str | None) -> tuple[str, str]:
    """User name and password, asked for on the terminal or read from the standard input, one a line."""
    if sys.stdin.isatty():
        import getpass

        if user is None:
            user = input(f"{location} username: ")
        password = getpass.getpass(f"{location} password: ")
    else:
        if user is None:
            user = sys.stdin.readline().rstrip("\r\n")
        password = sys.stdin.readline().rstrip("\r\n")
    if not user or not password:
        raise NoResult("no user name or no password given; nothing was saved")
    if ":" in user:
        raise NoResult("a registry's user name cannot contain ':'; nothing was saved")
    return user, password
