"""A container's /etc: the site's and the user's few files over the image's, by one overlay, so that nothing else is
copied.

Over the image's own come, later ones first: the generated passwd, group, shadow, mtab; the site's etcPath; the host's
hosts and resolv.conf; a plain nsswitch.conf.
"""

from runtime.identity import group_file, passwd_file
from runtime.plan import Copy, MakeDir, Overlay, Remount, Step, Symlink, Tmpfs, Write
from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.identity import User
    from runtime.request import Request
    from runtime.tree import Tree
    from runtime.udiroot import Udiroot
    from runtime.view import Host

GENERATED = ("passwd", "group", "shadow", "mtab")
SWITCH = (
    "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nservices: files\nprotocols: files\n"
)


def steps(request: "Request", conf: "Udiroot", user: "User", tree: "Tree", host: "Host") -> list[Step]:
    """The steps that make /etc. Raises StartRefused: etcPath is not there."""
    etc = tree.resolve("/etc")
    in_image = tree.view.kind(etc) == "dir"
    tree.add(etc, "dir", "the container's /etc", hides=False)
    out: list[Step] = [
        Tmpfs(etc, "755", conf.rootfs_type),
        Write(f"{etc}/passwd", "644", passwd_file(user, conf, host)),
        Write(f"{etc}/group", "644", group_file(user, (request.gid, *request.groups), conf, host)),
        Write(f"{etc}/shadow", "600"),
        Symlink(f"{etc}/mtab", "/proc/mounts"),
    ]
    present = set(GENERATED)
    if conf.etc_path:
        if host.kind(conf.etc_path) != "dir":
            raise StartRefused(f"etcPath {conf.etc_path} is not a directory on this node: tell the administrator", True)
        present.update(entry.path for entry in host.walk(conf.etc_path))
        out += copy_tree(conf.etc_path, etc, host, GENERATED)
    if request.inject:
        out += copy_tree(f"{request.inject}/etc", etc, host)
    out.extend(
        Copy(f"/etc/{name}", f"{etc}/{name}")
        for name in ("hosts", "resolv.conf")
        if name not in present and host.kind(f"/etc/{name}") == "file"
    )
    if "nsswitch.conf" not in present:
        out.append(Write(f"{etc}/nsswitch.conf", "644", SWITCH))
    out.append(Overlay(etc) if in_image else Remount(etc, "ro"))
    return out


def copy_tree(source: str, target: str, host: "Host", but: "tuple[str, ...]" = ()) -> list[Step]:
    """Steps that copy what is below a directory of the host, except `but`; neither devices nor sockets."""
    out: list[Step] = []
    if host.kind(source) != "dir":
        return out
    for entry in host.walk(source):
        path = f"{target}/{entry.path}"
        if entry.path in but:
            continue
        if entry.kind == "dir":
            out.append(MakeDir(path, "755"))
        elif entry.kind == "file":
            out.append(Copy(f"{source}/{entry.path}", path))
        elif entry.kind == "link":
            out.append(Symlink(path, entry.value))
    return out
