"""What a job wants of its container, as text between submission and nodes: SHIFTER_ variables and their SPANK_ copies.

`to_variables` writes them where the request was checked, at submission. `from_variables` reads them on a node, where
they are a user's text like any other (a plugin of the user's own can set SPANK_ variables to anything), and promises
the same checks again: no control characters, an identifier is 64 hex digits, a path is absolute, volumes keep to the
users' rules, modules exist and do not exclude each other. Whether the user may run the image and see the volumes'
sources is decided where the container is made, with the user's rights.
"""

from runtime.record import Record
from runtime.volumes import Volume, VolumeInvalid, check_user_volumes, parse_volumes
from wlm.failure import UserMistake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.udiroot import Udiroot

HEX = frozenset("0123456789abcdef")
LONGEST = 64 * 1024  # characters of a variable: far below what an environment may hold


class JobRequest(Record):
    """`kind` is id or local; `identifier` 64 hex digits or an absolute path; `asked` is what the user typed."""

    kind: str
    identifier: str
    asked: str = ""
    volumes: tuple[Volume, ...] = ()
    modules: tuple[str, ...] | None = None  # None: the site's default ones
    ccm: bool = False

    def volume_text(self) -> str:
        return ";".join(str(volume) for volume in self.volumes)

    def module_text(self) -> str:
        return ",".join(self.modules or ()) or "none"


def to_variables(request: JobRequest) -> "dict[str, str]":
    """The variables that a job carries."""
    found = {"SHIFTER_IMAGE": request.identifier, "SHIFTER_IMAGETYPE": request.kind}
    found.update(SHIFTER_IMAGEREQUEST=request.asked, SHIFTER_VOLUME=request.volume_text())
    if request.modules is not None:
        found["SHIFTER_MODULE"] = request.module_text()
    if request.ccm:
        found["SHIFTER_CCM"] = "1"
    return found


def from_variables(variables: "Mapping[str, str]", conf: "Udiroot", prefix: str = "SPANK_") -> JobRequest:
    """The request that the variables of a job hold. Raises UserMistake naming the variable."""

    def value(name: str) -> str:
        return check_text(name, variables.get(prefix + name, ""))

    kind, identifier = value("SHIFTER_IMAGETYPE"), value("SHIFTER_IMAGE")
    ccm = value("SHIFTER_CCM")
    check_image(kind, identifier, conf)
    if ccm not in ("", "1") or (ccm and (kind, identifier) != ("local", "/")):
        raise UserMistake("SHIFTER_CCM goes with the image local:/ only: use --ccm")
    module = value("SHIFTER_MODULE")
    volumes, modules = parse_user_volumes(value("SHIFTER_VOLUME")), parse_modules(module, conf) if module else None
    return JobRequest(kind, identifier, value("SHIFTER_IMAGEREQUEST"), volumes, modules, bool(ccm))


def check_text(name: str, text: str) -> str:
    """`text`, which a variable is to carry or carried. Raises UserMistake for what a line cannot hold, or an environment."""
    if len(text) > LONGEST or not text.isprintable():
        raise UserMistake(f"{name} holds a control character, or is longer than {LONGEST} characters")
    return text


def check_image(kind: str, identifier: str, conf: "Udiroot") -> None:
    """Raises UserMistake unless this is an identifier, or a local path and the site allows those."""
    if kind == "id":
        if len(identifier) != 64 or not HEX.issuperset(identifier):
            raise UserMistake(f"{identifier[:80]!r} is no image identifier: it has 64 digits 0-9a-f")
    elif kind == "local":
        if not conf.allow_local_chroot:
            raise UserMistake("local images are not allowed here: allowLocalChroot is not set in udiRoot.conf")
        if not identifier.startswith("/") or ".." in identifier.split("/"):
            raise UserMistake(f"local image {identifier[:80]!r} is not an absolute path without '..'")
    else:
        raise UserMistake(f"image type {kind[:80]!r} cannot be set up on a node: a job carries id or local")


def parse_user_volumes(text: str) -> "tuple[Volume, ...]":
    """A user's volumes. Raises UserMistake."""
    try:
        volumes = parse_volumes(text)
        check_user_volumes(volumes)
    except VolumeInvalid as error:
        raise UserMistake(str(error)) from None
    return volumes


def parse_modules(text: str, conf: "Udiroot") -> "tuple[str, ...]":
    """A user's list of modules; () for `none`. Raises UserMistake."""
    names = tuple(word for word in text.replace(",", " ").split() if word != "none")
    for name in names:
        module = conf.module(name)
        if module is None or not module.enabled:
            known = " ".join(found.name for found in conf.modules if found.enabled) or "none"
            raise UserMistake(f"no module {name[:80]!r} here: this site has: {known}")
        for other in module.conflict:
            if other in names and other != name:
                raise UserMistake(f"modules {name} and {other} exclude each other: leave one out")
    return names
