"""Who the user is inside: the passwd and group entries that a container gets.

The entries come from the site's etcPath (passwd, group) or from the C library, as udiRoot.conf says. A container
holds the user, the users that the site imports, and the user's own groups up to maxGroupCount: not the whole site.
"""

from runtime.record import Record
from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from runtime.udiroot import Udiroot

    class Accounts(Protocol):
        """Where entries come from."""

        def passwd_text(self) -> str: ...
        def group_text(self) -> str: ...
        def library_user(self, user: "int | str") -> "User | None": ...
        def library_group(self, gid: int) -> str: ...


class User(Record):
    """A line of passwd(5)."""

    name: str
    uid: int
    gid: int
    gecos: str = ""
    home: str = "/"
    shell: str = "/bin/sh"

    def line(self) -> str:
        """As passwd(5) has it, without a password."""
        return ":".join((self.name, "x", str(self.uid), str(self.gid), self.gecos, self.home, self.shell)) + "\n"


def parse_passwd(text: str) -> list[User]:
    """The well-formed lines of a passwd file."""
    users = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 7 and fields[2].isdigit() and fields[3].isdigit():
            users.append(User(fields[0], int(fields[2]), int(fields[3]), fields[4], fields[5], fields[6]))
    return users


def find_user(key: "int | str", conf: "Udiroot", accounts: "Accounts") -> User | None:
    """The entry of a uid or a name, or None."""
    if not conf.populate_etc_dynamically:
        for user in parse_passwd(accounts.passwd_text()):
            if key in (user.uid, user.name):
                return user
    if conf.allow_libc_pwd_calls or conf.populate_etc_dynamically:
        return accounts.library_user(key)
    return None


def caller_entry(uid: int, conf: "Udiroot", accounts: "Accounts") -> User:
    """The caller's entry. Raises StartRefused: root, or no entry."""
    if uid == 0:
        raise StartRefused("running as root: a container is a user's: run shifter as that user")
    user = find_user(uid, conf, accounts)
    if user is None:
        source = f"{conf.etc_path}/passwd" if conf.etc_path else "the host's passwd"
        raise StartRefused(f"uid {uid} has no passwd entry: not in {source}: ask the administrator for an account")
    return user


def passwd_file(user: User, conf: "Udiroot", accounts: "Accounts") -> str:
    """The container's /etc/passwd."""
    lines = [user.line()]
    for name in conf.users_to_import:
        other = find_user(name, conf, accounts)
        if other is not None and other.uid != user.uid:
            lines.append(other.line())
    return "".join(lines)


def group_file(user: User, gids: "Sequence[int]", conf: "Udiroot", accounts: "Accounts") -> str:
    """The container's /etc/group: the caller's groups, the first ones where there are more than maxGroupCount."""
    names: dict[int, str] = {}
    if not conf.populate_etc_dynamically:
        for line in accounts.group_text().splitlines():
            fields = line.split(":")
            if len(fields) == 4 and fields[2].isdigit():
                names.setdefault(int(fields[2]), fields[0])
    by_library = conf.allow_libc_pwd_calls or conf.populate_etc_dynamically
    lines = []
    for gid in list(dict.fromkeys(gids))[: conf.max_group_count]:
        name = names.get(gid) or (accounts.library_group(gid) if by_library else "")
        if name:
            lines.append(f"{name}:x:{gid}:{user.name}\n")
    return "".join(lines)
