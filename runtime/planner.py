"""Policy: from a request, the site's configuration and the image, the steps of a start.

`begin` gives the steps until the image can be looked at, `build` the rest; `plan` is both, for who has a view of the
image already. `main` is the program that the launcher runs: it reads the request on descriptor 3, streams the steps
there, and asks the gateway as the user. It promises that what it refuses is refused with one `StartRefused`, before
anything of the user's runs; it mounts and writes nothing itself.
"""

import os
import sys

from runtime import environment, etc, identity, keep, nodestate, rootless
from runtime import plan as steps
from runtime.channel import Launcher
from runtime.plan import Bind, Chdir, Drop, Exec, MakeDir, Pivot, Proc, RootHook, Say, Step, UserHook
from runtime.refusal import StartRefused
from runtime.request import Request, from_records
from runtime.sidecar import ImageRecord, find
from runtime.tree import Tree, inside
from runtime.udiroot import ConfigInvalid, Module, Udiroot, nearest_name, read
from runtime.view import Mounted, Node, resolve
from runtime.volumes import Volume, VolumeInvalid, check_user_volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cdi import Edits
    from runtime.view import Host, View

CHANNEL = 3  # the launcher's socket
MODULES = "/opt/udiImage/modules"


def plan(request: Request, conf: Udiroot, record: ImageRecord, view: "View", host: "Host") -> list[Step]:
    """All steps of a start of one's own. Raises StartRefused."""
    return [opening(conf, record), *build(request, conf, record, view, host)]


def opening(conf: Udiroot, record: ImageRecord) -> Step:
    """The step after which the image can be looked at."""
    if record.format == "local":
        return steps.Local(record.path)
    return steps.Image(record.path, record.format, f"{conf.loop_mount}/holds", "keep" if conf.hold_linger else "share")


def build(request: Request, conf: Udiroot, record: ImageRecord, view: "View", host: "Host") -> list[Step]:
    """The steps from the mounted image to the command. Raises StartRefused."""
    modules = choose_modules(request, conf)
    user = identity.caller_entry(request.uid, conf, host)
    hooks = [conf.site_pre_mount_hook, conf.site_post_mount_hook, *(module.roothook for module in modules)]
    tree = Tree(view, host, conf.rootfs_type, writable_root=any(hooks))
    system = system_mounts(tree, host)
    etc_steps = etc.steps(request, conf, user, tree, host)
    site = site_mounts(tree, conf, modules, host)
    gpu = gpu_mounts(tree, request, conf)
    copies = copied(tree, request, conf, modules, host)
    volumes = user_mounts(tree, request, conf, host)
    files = [steps.Write(tree.file(path, "setupRoot"), "644", text) for path, text in request.files]
    where = "host" if request.prepare else "namespace"
    out: list[Step] = [steps.Begin(conf.mount_propagation_style, conf.udi_mount, where), *tree.steps()]
    if conf.site_pre_mount_hook:
        out.append(RootHook(conf.site_pre_mount_hook))
    out += [*tree.mount_points(), *system, *etc_steps, *site, *gpu, *copies]
    if conf.site_post_mount_hook:
        out.append(RootHook(conf.site_post_mount_hook))
    out.extend(RootHook(module.roothook) for module in modules if module.roothook)
    out += [*volumes, *files]
    if not conf.mount_udi_root_writable:
        out += tree.seal()
    return out if request.prepare else [*out, *inward(request, conf, record, modules, user, view, host)]


def inward(
    request: Request, conf: Udiroot, record: ImageRecord, modules: list[Module], user: identity.User, view: "View",
    host: "Host",
) -> list[Step]:  # fmt: skip
    """The steps from the finished root to the command."""
    return [Pivot(), *last(request, conf, record, modules, user, view, host)]


def last(
    request: Request, conf: Udiroot, record: ImageRecord, modules: list[Module], user: identity.User, view: "View",
    host: "Host",
) -> list[Step]:  # fmt: skip
    """The steps in the container, to the command."""
    out: list[Step] = [Drop(), *environment.steps(request, conf, record, modules, host, gpu_edits(request, conf))]
    if request.workdir == "":
        if not record.workdir:
            raise StartRefused("--workdir: the image names no working directory: use --workdir=DIR")
        out.append(Chdir(record.workdir, "required"))
    elif request.workdir is not None:
        out.append(Chdir(request.workdir, "required"))
    else:
        out.append(Chdir("", "/"))
    out.extend(UserHook(module.userhook) for module in modules if module.userhook)
    out.append(command(request, record, user, view))
    return out


def command(request: Request, record: ImageRecord, user: identity.User, view: "View") -> Exec:
    """What is run: the arguments; the entry point and the arguments or the image's command; or a shell."""
    if request.entrypoint is None:
        if request.has_arguments:
            return Exec("append")
        shell = user.shell or "/bin/sh"
        return Exec("none", (shell if view.kind(resolve(view, shell)) == "file" else "/bin/sh",))
    if request.entrypoint:
        return Exec("append" if request.has_arguments else "none", (request.entrypoint,))
    if not record.entrypoint:
        raise StartRefused("--entrypoint: the image has no entry point: use --entrypoint=COMMAND, or no such option")
    if request.has_arguments:
        return Exec("append", record.entrypoint)
    return Exec("none", (*record.entrypoint, *(record.cmd or ())))


def choose_modules(request: Request, conf: Udiroot) -> list[Module]:
    """The modules of a start, in the user's order. Raises StartRefused: unknown, switched off, in conflict."""
    chosen: list[Module] = []
    known = [module.name for module in conf.modules if module.enabled]
    for name in conf.default_modules if request.modules is None else request.modules:
        module = conf.module(name)
        if module is None or not module.enabled:
            raise StartRefused(f"module {name!r} is not known here{nearest_name(name, known)}")
        if module not in chosen:
            chosen.append(module)
    for module in chosen:
        for other in chosen:
            if other.name in module.conflict:
                raise StartRefused(
                    f"modules {module.name!r} and {other.name!r} exclude each other: use --module with one"
                )
    return chosen


def system_mounts(tree: Tree, host: "Host") -> list[Step]:
    """What every container has: proc, and the host's sys, dev, tmp, var/tmp."""
    out: list[Step] = []
    for target, flags in (("/proc", ""), ("/sys", "rec"), ("/dev", "rec"), ("/tmp", "nodev"), ("/var/tmp", "nodev")):  # noqa: S108 - the container's
        path = tree.resolve(target)
        if any(inside(path, bound) for bound in tree.bound) or path == "/":
            continue  # the image says that two of them are one
        tree.add(path, "dir", f"the container's {target}", "" if target == "/proc" else target)
        out.append(Proc(path, host.proc_options()) if target == "/proc" else Bind("root", "host", target, path, flags))
    return out


def site_mounts(tree: Tree, conf: Udiroot, modules: list[Module], host: "Host") -> list[Step]:
    """siteFs, siteResources, and the modules' siteFs."""
    out: list[Step] = []
    wishes = [(volume, "siteFs") for volume in conf.site_fs]
    for module in modules:
        wishes += [(volume, f"module {module.name}'s siteFs") for volume in module.site_fs]
    for volume, what in wishes:
        kind = host.kind(volume.source)
        if kind not in ("dir", "file"):
            raise StartRefused(
                f"{what} {volume}: {volume.source} does not exist on this node: tell the administrator", True
            )
        out.append(place(tree, volume.source, volume.target, kind, f"{what} {volume}", ",".join(volume.flags), "root"))
    if (path := conf.site_resources) and host.kind(path) == "dir":
        out.append(place(tree, path, path, "dir", "siteResources", "rec", "root"))
    elif path and not any(inside(tree.resolve(path), bound) for bound in tree.bound):
        tree.add(tree.resolve(path), "dir", "siteResources", hides=False)
    return out


def gpu_edits(request: Request, conf: Udiroot) -> "Edits | None":
    """What the wanted GPUs add to a container, or None. Raises StartRefused."""
    wanted = conf.gpu if request.gpu is None else request.gpu
    if wanted in ("", "none"):
        return None
    from runtime import cdi  # imports json: only where it is needed

    return cdi.edits(wanted, conf.cdi_path)


def gpu_mounts(tree: Tree, request: Request, conf: Udiroot) -> list[Step]:
    """The devices and libraries of the wanted GPUs; what the container's /dev shows already needs no mount."""
    out: list[Step] = []
    edits = gpu_edits(request, conf)
    for mount in edits.mounts if edits else ():
        if mount.kind == "device" and mount.source == mount.target and inside(mount.target, "/dev"):
            continue
        kind = "dir" if mount.kind == "dir" else "file"
        flags = ["ro"] * mount.read_only + ["nodev"] * (mount.kind != "device")
        out.append(place(tree, mount.source, mount.target, kind, f"GPU {mount.source}", ",".join(flags), "root"))
    return out


def place(tree: Tree, source: str, target: str, kind: str, wanted: str, flags: str, owner: str) -> Step:
    """One bind, with its mount point seen to."""
    path = tree.resolve(target)
    tree.add(path, kind, wanted, source, by_user=owner == "user")
    return Bind(owner, "host", source, path, flags)


def copied(tree: Tree, request: Request, conf: Udiroot, modules: list[Module], host: "Host") -> list[Step]:
    """optUdiImage at /opt/udiImage, the modules' copyPath below it: copies, in a tmpfs of their own."""
    sources = [(conf.opt_udi_image, "/opt/udiImage", "optUdiImage")] if conf.opt_udi_image else []
    sources += [
        (module.copy_path, f"{MODULES}/{module.name}", f"module {module.name}'s copyPath")
        for module in modules
        if module.copy_path
    ]
    if request.inject and host.kind(f"{request.inject}/opt/udiImage") == "dir":
        sources.append((f"{request.inject}/opt/udiImage", "/opt/udiImage", "--inject"))
    if not sources:
        return []
    root = tree.resolve("/opt/udiImage")
    tree.add(root, "dir", "the site's files in /opt/udiImage")
    out: list[Step] = [steps.Tmpfs(root, "755", conf.rootfs_type)]
    if any(target.startswith(MODULES) for _, target, _ in sources):
        out.append(MakeDir(f"{root}/modules", "755"))
    for source, target, what in sources:
        if host.kind(source) != "dir":
            raise StartRefused(f"{what}: {source} is not a directory on this node: tell the administrator", True)
        base = root + target[len("/opt/udiImage") :]
        if target != "/opt/udiImage":
            out.append(MakeDir(base, "755"))
        out += etc.copy_tree(source, base, host)
    return out


def user_mounts(tree: Tree, request: Request, conf: Udiroot, host: "Host") -> list[Step]:
    """The user's volumes. The rules hold for where a target leads in the image, not only for how it is written."""
    out: list[Step] = []
    for volume in request.volumes:
        wanted = f"volume {volume.source}:{volume.target}"
        if volume.cache:
            out += node_cache(tree, conf, volume, wanted)
            continue
        try:
            kind = host.user_kind(volume.source)
        except OSError as error:
            hint = "name a directory that is there and yours to read"
            raise StartRefused(f"{wanted}: {volume.source}: {error.strerror}: {hint}") from None
        if kind not in ("dir", "file"):
            raise StartRefused(f"{wanted}: {volume.source} is neither a directory nor a file")
        check_resolved(tree, volume)
        flags = ",".join(["nodev", *(flag for flag in volume.flags if flag == "ro")])
        out.append(place(tree, volume.source, volume.target, kind, wanted, flags, "user"))
    return out


def check_resolved(tree: Tree, volume: Volume) -> None:
    """The user's rules for where a target leads in this image. Raises StartRefused."""
    try:
        check_user_volumes([volume.changed(target=tree.resolve(volume.target))])
    except VolumeInvalid as error:
        raise StartRefused(f"{error} ({volume.target} leads there in this image)") from None


def node_cache(tree: Tree, conf: Udiroot, volume: Volume, wanted: str) -> list[Step]:
    """A file system of the node's own at the volume's target; at its source too, where the image leaves room for that."""
    cache = volume.cache
    assert cache is not None
    if not conf.per_node_cache_path:
        raise StartRefused(f"{wanted}: perNodeCache is not configured on this system (perNodeCachePath)")
    if cache.fstype not in conf.per_node_cache_allowed_fs_type or cache.fstype != "xfs":
        allowed = " ".join(conf.per_node_cache_allowed_fs_type)
        raise StartRefused(f"{wanted}: perNodeCache with fs={cache.fstype}: this system has {allowed}")
    if conf.per_node_cache_size_limit and cache.size > conf.per_node_cache_size_limit:
        limit = conf.per_node_cache_size_limit
        raise StartRefused(f"{wanted}: perNodeCache of {cache.size} bytes: this system allows {limit}: ask for less")
    check_resolved(tree, volume)
    path = tree.resolve(volume.target)
    tree.add(path, "dir", wanted)
    out: list[Step] = [steps.NodeDisk(conf.per_node_cache_path, str(cache.size), conf.mkfs_xfs_path, path)]
    source = tree.resolve(volume.source)
    if (
        source != path
        and tree.view.kind(source) in ("", "dir")
        and not any(inside(source, bound) for bound in tree.bound)
    ):
        tree.add(source, "dir", wanted)
        out.append(Bind("root", "new", path, source, "nodev"))
    return out


def choose_image(request: Request, conf: Udiroot) -> ImageRecord:
    """The record of the image that the user named; tags are looked up at the gateway, as the user. Raises
    StartRefused."""
    kind, tag = request.image
    if kind == "local":
        if not conf.allow_local_chroot:
            raise StartRefused(f"image local:{tag}: local directories are not allowed here (allowLocalChroot)")
        if not tag.startswith("/"):
            raise StartRefused(f"image local:{tag}: name an absolute path")
        return ImageRecord(id=tag, path=tag, format="local")
    if kind != "id":
        from runtime import lookup

        tag = lookup.identifier(request, conf)
    return find(conf.image_path, tag, request.uid, (request.gid, *request.groups))


def check_local(record: ImageRecord, host: "Host") -> None:
    """A better word than the launcher's for a local image that cannot be; its own rights decide. Raises StartRefused."""
    try:
        kind, why = host.user_kind(record.path), "it is not a directory"
    except OSError as error:
        kind, why = "", str(error.strerror)
    if kind != "dir":
        raise StartRefused(f"image local:{record.path}: {why}: name a directory that is there and yours to read")


def show(plan_steps: list[Step], as_json: bool) -> None:
    """Print a plan on the caller's standard output."""
    if as_json:
        import json

        print(json.dumps([steps.as_json(step) for step in plan_steps], indent=1, ensure_ascii=True))
    else:
        print("\n".join(map(steps.describe, plan_steps)))
    sys.stdout.flush()


def converse(config: str, launcher: Launcher) -> None:
    """Answer the launcher's request with a plan. Raises StartRefused, ConfigInvalid."""
    records = list(launcher.receive())
    conf = read(config, trusted=["rights", "caller"] not in records)  # without privilege there is nothing to protect
    request = from_records(records[1:], conf.default_image_type)
    record = choose_image(request, conf)
    host = Node(request.uid, request.gid, conf.etc_path, request.rootless)
    user = identity.caller_entry(request.uid, conf, host)
    if record.format == "local":
        check_local(record, host)
    if not request.rootless:
        nodestate.make(conf)
    prepared = None if request.rootless else nodestate.prepared(conf)
    if prepared is not None and prepared.serves(request, record, choose_modules(request, conf), conf):
        view: View = Mounted(os.open(conf.udi_mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        all_steps: list[Step] = [*notes(request, conf, record, "joined"), steps.Join(conf.udi_mount, prepared.root)]
        all_steps += last(request, conf, record, choose_modules(request, conf), user, view, host)
        rest = all_steps
    else:
        first = rootless.opening(conf, record) if request.rootless else opening(conf, record)
        all_steps = [*notes(request, conf, record, "made"), first]
        launcher.send(all_steps)
        view = Mounted(launcher.sync())
        rest = build(request, conf, record, view, host)
        if request.rootless:
            rest = rootless.adapt(rest, conf)
        all_steps += rest
    if request.plan_only:
        show(all_steps, request.json)
        return
    if not request.rootless and keep.may_keep(request, conf):
        edits = gpu_edits(request, conf)
        files = [*keep.needs(conf, record), *(edits.files if edits else ())]
        keep.write(conf, records[0][1], records[1:], files, all_steps)
    launcher.send(rest)


def notes(request: Request, conf: Udiroot, record: ImageRecord, how: str) -> list[Step]:
    """What --verbose adds to a start."""
    if not request.verbose:
        return []
    lines = [f"warning: {text}" for text in conf.warnings]
    edits = gpu_edits(request, conf) if how == "made" else None
    lines += [f"GPU: {note}" for note in (edits.notes if edits else ())]
    lines.append(f"image {request.requested} is {record.id} ({record.path})")
    lines.append(f"environment: {how} at {conf.udi_mount}" + (" in a user namespace" if request.rootless else ""))
    return [Say(line) for line in lines]


def main(config: str) -> None:
    """The planner as a program of the launcher's; ends the process."""
    launcher = Launcher(CHANNEL)
    try:
        try:
            converse(config, launcher)
        except (StartRefused, ConfigInvalid, steps.PlanInvalid) as error:
            launcher.send([steps.Refuse(str(error).replace("\0", "?"))])
    except ConnectionError:
        pass  # the launcher could not execute a step; it has said why
    os._exit(0)  # at once: the launcher waits for this, and there is nothing to clean up
