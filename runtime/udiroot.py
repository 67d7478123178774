"""udiRoot.conf: what a site says about its nodes. `KEYS` is its only description: parser, checks and documentation
use it.

`read` promises a `Udiroot` whose values have the documented types, from a file that only root can change. An unknown
key is an error that names the nearest known one; a deprecated key is accepted and collected in `warnings`. Module
settings (`module_<name>_<setting>`) become `Module` records. Nothing here looks at images or users.
"""

import os

from runtime.record import Record
from runtime.volumes import Volume, VolumeInvalid, parse_size, parse_volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ConfigInvalid(Exception):
    """udiRoot.conf cannot be used: the text names the file, the line or key, and what to do."""


class Key(Record):
    """A key of udiRoot.conf. Kinds: path, program, text, flag (0/1), count, seconds, size (bytes), words, commas,
    envs, names, volumes, or choices separated by `|`."""

    name: str
    field: str
    kind: str
    default: object
    doc: str
    required: bool = False
    deprecated: str = ""  # why it has no effect


class Module(Record):
    """`module_<name>_*`: what a module adds to a container."""

    name: str
    enabled: bool = True
    userhook: str = ""
    roothook: str = ""
    site_env: tuple[tuple[str, str], ...] = ()
    site_env_prepend: tuple[tuple[str, str], ...] = ()
    site_env_append: tuple[tuple[str, str], ...] = ()
    site_env_unset: tuple[str, ...] = ()
    conflict: tuple[str, ...] = ()
    site_fs: tuple[Volume, ...] = ()
    copy_path: str = ""


KEYS: tuple[Key, ...] = (
    Key("udiMount", "udi_mount", "path", "", "Where a container's root is assembled. Root's, for nothing else.", True),
    Key("loopMount", "loop_mount", "path", "", "Where the node keeps mounted images and cached plans. Root's.", True),
    Key("imagePath", "image_path", "path", "", "The gateway's imageDir, as this node sees it.", True),
    Key("udiRootPath", "udi_root_path", "path", "/opt/shifter/default", "Where Shifter is installed.", False),
    Key("system", "system", "text", "", "This system's name: a platform of the gateway.", True),
    Key("imageGateway", "image_gateway", "words", (),
        "URLs of the gateway; one is chosen at random, the others follow."),
    Key("gatewayTimeout", "gateway_timeout", "seconds", 5.0, "Seconds to wait for a gateway before the next is asked."),
    Key("defaultImageType", "default_image_type", "text", "docker", "Type of an image that is named without one."),
    Key("etcPath", "etc_path", "path",
        "", "Directory whose files appear in every container's /etc; may hold passwd, group."),
    Key("rootfsType", "rootfs_type", "tmpfs|ramfs", "tmpfs", "File system for what is made at a start."),
    Key("mountPropagationStyle", "mount_propagation_style", "slave|private", "slave",
        "Whether mounts made later on the host reach containers (slave) or not (private)."),
    Key("mountUdiRootWritable", "mount_udi_root_writable", "flag", True,
        "1: what is made for mount points stays writable by root; 0: it is made read-only."),
    Key("maxGroupCount", "max_group_count", "count", 31, "Most groups that a container's /etc/group holds."),
    Key("usersToImport", "users_to_import", "commas", (), "Further users in a container's /etc/passwd."),
    Key("allowLibcPwdCalls", "allow_libc_pwd_calls", "flag", True,
        "Whether the user is looked up by the C library (LDAP ...) when etcPath has no entry."),
    Key("populateEtcDynamically", "populate_etc_dynamically", "flag", False,
        "1: passwd and group come from the C library even where etcPath has them."),
    Key("siteFs", "site_fs", "volumes", (),
        "FROM:TO[:flag...], separated by `;` or spaces, that every container sees. Flags: ro rec slave private shared."),
    Key("siteEnv", "site_env", "envs", (), "NAME=VALUE ... set in every container."),
    Key("siteEnvPrepend", "site_env_prepend", "envs", (), "NAME=VALUE ... put in front of colon-separated variables."),
    Key("siteEnvAppend", "site_env_append", "envs", (), "NAME=VALUE ... put behind colon-separated variables."),
    Key("siteEnvUnset", "site_env_unset", "names", (), "Variables that containers do not get."),
    Key("siteResources", "site_resources", "path", "",
        "Host directory that appears at the same path; where the node lacks it, containers have an empty one."),
    Key("sitePreMountHook", "site_pre_mount_hook", "program", "", "Run as root in the container's root before siteFs."),
    Key("sitePostMountHook", "site_post_mount_hook", "program",
        "", "Run as root in the container's root after siteFs."),
    Key("optUdiImage", "opt_udi_image", "path", "", "Directory copied to /opt/udiImage of every container."),
    Key("defaultModules", "default_modules", "commas", (), "Modules of a start that names none."),
    Key("allowLocalChroot", "allow_local_chroot", "flag", False, "Whether --image=local:/path may be used."),
    Key("perNodeCachePath", "per_node_cache_path", "path", "", "Directory for backing files of perNodeCache volumes."),
    Key("perNodeCacheSizeLimit", "per_node_cache_size_limit", "size", 0, "Largest perNodeCache; 0: no limit."),
    Key("perNodeCacheAllowedFsType", "per_node_cache_allowed_fs_type", "words", ("xfs",),
        "File systems for perNodeCache."),
    Key("mkfsXfsPath", "mkfs_xfs_path", "program", "/sbin/mkfs.xfs", "mkfs.xfs, for perNodeCache."),
    Key("holdLinger", "hold_linger", "count", 300,
        "Seconds that a node keeps an image mounted after its last container; 0: not at all."),
    Key("planCache", "plan_cache", "flag", True, "Whether a node remembers plans; 0: every start is computed anew."),
    Key("gpu", "gpu", "text", "", "GPUs of a start that names none: all, none, or numbers 0,1 (CDI)."),
    Key("cdiPath", "cdi_path", "words", ("/etc/cdi", "/var/run/cdi"), "Directories of CDI specifications, for GPUs."),
    Key("batchType", "batch_type", "text", "", "Name of the batch system, for integrations.", False),
    *(
        Key(name, name, "text", "", doc, False, "no such program is run any more")
        for name, doc in (
            ("modprobePath", "modprobe."), ("insmodPath", "insmod."), ("cpPath", "cp."),
            ("mvPath", "mv."), ("chmodPath", "chmod."), ("ddPath", "dd."),
        )
    ),
    *(
        Key(name, name, "text", "", doc, False,
            "kernel modules are never loaded here: load loop, squashfs, xfs at boot")
        for name, doc in (
            ("autoLoadKernelModule", "Load kernel modules."), ("kmodBasePath", "Directory of kernel modules."),
            ("kmodCacheFile", "Cache of kernel modules."),
        )
    ),
    Key("optionalSshdAsRoot", "optionalSshdAsRoot", "text", "", "Run the sshd as root.", False,
        "the sshd always runs as the user"),
)  # fmt: skip

MODULE_KEYS: tuple[Key, ...] = (
    Key("enabled", "enabled", "flag", True, "0: nobody can use the module."),
    Key("userhook", "userhook", "program", "", "Run by /bin/sh in the container as the user before the command."),
    Key("roothook", "roothook", "program", "", "Run by /bin/sh on the host as root in the container's root."),
    Key("siteEnv", "site_env", "envs", (), "NAME=VALUE ... to set."),
    Key("siteEnvPrepend", "site_env_prepend", "envs", (), "NAME=VALUE ... to put in front."),
    Key("siteEnvAppend", "site_env_append", "envs", (), "NAME=VALUE ... to put behind."),
    Key("siteEnvUnset", "site_env_unset", "names", (), "Variables to unset."),
    Key("conflict", "conflict", "names", (), "Modules that cannot be used together with this one."),
    Key("siteFs", "site_fs", "volumes", (), "FROM:TO[:flag...] to bind, separated by `;` or spaces."),
    Key("copyPath", "copy_path", "path", "", "Directory copied to /opt/udiImage/modules/<name>/."),
)


SYSTEM_DIRECTORIES = (
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run", "/sbin", "/sys",
    "/tmp", "/usr", "/var", "/var/tmp",  # noqa: S108 - named to be refused
)  # fmt: skip
"""Where neither udiMount nor loopMount may be; below them they may."""


class Udiroot(Record):
    """A parsed udiRoot.conf; the fields are described in `KEYS`. Paths are absolute text, sizes bytes, times
    seconds."""

    path: str
    udi_mount: str
    loop_mount: str
    image_path: str
    system: str
    udi_root_path: str = "/opt/shifter/default"
    image_gateway: tuple[str, ...] = ()
    gateway_timeout: float = 5.0
    default_image_type: str = "docker"
    etc_path: str = ""
    rootfs_type: str = "tmpfs"
    mount_propagation_style: str = "slave"
    mount_udi_root_writable: bool = True
    max_group_count: int = 31
    users_to_import: tuple[str, ...] = ()
    allow_libc_pwd_calls: bool = True
    populate_etc_dynamically: bool = False
    site_fs: tuple[Volume, ...] = ()
    site_env: tuple[tuple[str, str], ...] = ()
    site_env_prepend: tuple[tuple[str, str], ...] = ()
    site_env_append: tuple[tuple[str, str], ...] = ()
    site_env_unset: tuple[str, ...] = ()
    site_resources: str = ""
    site_pre_mount_hook: str = ""
    site_post_mount_hook: str = ""
    opt_udi_image: str = ""
    default_modules: tuple[str, ...] = ()
    allow_local_chroot: bool = False
    per_node_cache_path: str = ""
    per_node_cache_size_limit: int = 0
    per_node_cache_allowed_fs_type: tuple[str, ...] = ("xfs",)
    mkfs_xfs_path: str = "/sbin/mkfs.xfs"
    hold_linger: int = 300
    plan_cache: bool = True
    gpu: str = ""
    cdi_path: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    batch_type: str = ""
    modules: tuple[Module, ...] = ()
    warnings: tuple[str, ...] = ()

    def module(self, name: str) -> "Module | None":
        """The module of that name, or None."""
        return next((module for module in self.modules if module.name == name), None)


def read(path: str, *, trusted: bool = True) -> Udiroot:
    """Parse the udiRoot.conf at `path`.

    Programs without privilege may read with `trusted=False` a file that is not root's. Raises ConfigInvalid:
    unreadable, bad content, or (trusted) not root's alone to change.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read: {error.strerror}: ask the administrator to install it") from None
    with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as file:
        status = os.fstat(file.fileno())
        if trusted and (status.st_uid != 0 or status.st_mode & 0o022):
            raise ConfigInvalid(
                f"{path}: must be owned by root and writable by nobody else:"
                f" owner {status.st_uid}, mode {status.st_mode & 0o7777:o}: chown root and chmod 644 it"
            )
        text = file.read()
    return parse(text, path)


def parse(text: str, path: str) -> Udiroot:
    """Parse the text of a udiRoot.conf; `path` is for messages. Raises ConfigInvalid."""
    known = {key.name: key for key in KEYS}
    module_known = {key.name: key for key in MODULE_KEYS}
    values: dict[str, Any] = {}
    modules: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for number, line in logical_lines(text):
        name, equals, value = line.partition("=")
        name, value, where = name.strip(), value.strip(), f"{path}: line {number}"
        if not equals:
            raise ConfigInvalid(
                f"{where}: {line.strip()!r} is not KEY=VALUE: begin a comment with # in the first column"
            )
        if name.startswith("module_") and "_" in name[7:]:
            module, _, setting = name[7:].rpartition("_")
            found, store = module_known.get(setting), modules.setdefault(module, {})
            if found is None:
                raise ConfigInvalid(f"{where}: unknown module setting {setting!r}{nearest(setting, module_known)}")
        else:
            found, store = known.get(name), values
            if found is None:
                raise ConfigInvalid(f"{where}: unknown key {name!r}{nearest(name, known)}")
        if found.deprecated:
            warnings.append(f"{where}: {name} has no effect: {found.deprecated}")
            continue
        if value:
            parsed = convert(found.kind, value, f"{where}: {name}")
            repeats = isinstance(parsed, tuple) and found.field in store
            store[found.field] = store[found.field] + parsed if repeats else parsed
    for key in KEYS:
        if key.required and key.field not in values:
            raise ConfigInvalid(f"{path}: {key.name} is missing: {key.doc}")
    check_places(values["udi_mount"], values["loop_mount"], path)
    built = tuple(Module(name, **settings) for name, settings in sorted(modules.items()))
    names = {module.name for module in built}
    for wanted in values.get("default_modules", ()):
        if wanted not in names:
            raise ConfigInvalid(
                f"{path}: defaultModules names {wanted!r}, for which there is no module_{wanted}_ setting"
            )
    return Udiroot(path=path, modules=built, warnings=tuple(warnings), **values)


def check_places(udi_mount: str, loop_mount: str, path: str) -> None:
    """udiMount is mounted over and cleared, with all below it: it may hold nothing else. Raises ConfigInvalid."""
    udi, loop = (os.path.normpath(place).replace("//", "/") for place in (udi_mount, loop_mount))
    for name, place in (("udiMount", udi), ("loopMount", loop)):
        if place in SYSTEM_DIRECTORIES:
            raise ConfigInvalid(f"{path}: {name}: {place} is the system's own: name a directory for nothing else")
    if udi == loop or udi.startswith(loop + "/") or loop.startswith(udi + "/"):
        raise ConfigInvalid(f"{path}: udiMount {udi} and loopMount {loop}: neither may be in the other: use two places")


def logical_lines(text: str) -> "list[tuple[int, str]]":
    """(line number, text) of each setting: continued lines joined, comments and empty lines left out."""
    out: list[tuple[int, str]] = []
    begun, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not begun and (line.startswith("#") or not line.strip()):
            continue
        first = first if begun else number
        if line.endswith("\\"):
            begun += line[:-1].strip() + " "
            continue
        out.append((first, begun + line.strip()))
        begun = ""
    if begun.strip():
        out.append((first, begun))
    return out


def convert(kind: str, value: str, where: str) -> "Any":
    """A value of a `Key` kind from its text. Raises ConfigInvalid, `where` first."""
    if kind in ("path", "program"):
        if not value.startswith("/") or any(c in value for c in "\n\0"):
            raise ConfigInvalid(f"{where}: {value!r} is not an absolute path: start it with /")
        return value if kind == "program" else value.rstrip("/") or "/"
    if kind == "flag":
        flags = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}
        if value.lower() not in flags:
            raise ConfigInvalid(f"{where}: {value!r}: use 0 or 1")
        return flags[value.lower()]
    if kind == "count":
        if not value.isascii() or not value.isdigit():
            raise ConfigInvalid(f"{where}: {value!r} is not a whole number")
        return int(value)
    if kind == "seconds":
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 86400:
            raise ConfigInvalid(f"{where}: {value!r} is not a number of seconds above 0")
        return seconds
    if kind == "words":
        return tuple(value.split())
    if kind in ("commas", "names"):
        return tuple(word for word in value.replace(",", " ").split() if word)
    if kind == "envs":
        pairs = [word.partition("=") for word in value.split()]
        for name, equals, _ in pairs:
            if not equals or not name:
                raise ConfigInvalid(f"{where}: {name!r} is not NAME=VALUE")
        return tuple((name, text) for name, _, text in pairs)
    try:
        if kind == "size":
            return parse_size(value) if value != "0" else 0
        if kind == "volumes":
            return parse_volumes(";".join(value.split()))  # documented both ways: no path here can hold a space
    except VolumeInvalid as error:
        raise ConfigInvalid(f"{where}: {error}") from None
    if "|" in kind and value not in kind.split("|"):
        raise ConfigInvalid(f"{where}: {value!r}: use one of {kind.replace('|', ' ')}")
    return value


def nearest(name: str, known: "dict[str, Key]") -> str:
    """A hint for an error message about a key."""
    return nearest_name(name, list(known)) or ": see udiRoot.conf.example for the known ones"


def nearest_name(name: str, known: list[str]) -> str:
    """`: did you mean ...?` with the known name nearest to `name`, or ""."""
    import difflib  # only here: errors may be slow, starts may not

    by_lower = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f": did you mean {by_lower[close[0]]!r}?" if close else ""
