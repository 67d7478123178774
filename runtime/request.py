"""What a caller asks for: the command line, the SHIFTER variables, and who is calling, as one `Request`.

`from_records` reads the launcher's wire form (records `option`, `user`, `environment`, `end`); `Request` is what the
planner works on. The order of precedence is the documented one: command line, SHIFTER, SHIFTER_IMAGE and
SHIFTER_IMAGETYPE, then the same as SLURM_SPANK_*. Nothing here looks at files or users.
"""

from runtime.record import Record
from runtime.reference import Reference, ReferenceInvalid
from runtime.reference import parse as parse_reference
from runtime.refusal import StartRefused
from runtime.volumes import Volume, VolumeInvalid, check_user_volumes, parse_volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SPANK = "SLURM_SPANK_"


class Request(Record):
    """A start as its user wants it. None means: not said."""

    uid: int
    gid: int
    image: Reference
    requested: str = ""  # the image as the user named it, for SHIFTER_IMAGEREQUEST
    groups: tuple[int, ...] = ()
    volumes: tuple[Volume, ...] = ()
    modules: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    environment_file: tuple[str, ...] = ()
    clear_environment: bool = False
    keep: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    entrypoint: str | None = None  # "": the image's
    workdir: str | None = None  # "": the image's
    gpu: str | None = None
    has_arguments: bool = True
    plan_only: bool = False
    json: bool = False
    verbose: bool = False
    prepare: bool = False  # setupRoot: an environment for many starts, nothing run
    inject: str = ""  # setupRoot: a directory whose etc/ and opt/udiImage/ are copied in
    files: tuple[tuple[str, str], ...] = ()  # setupRoot: (path, text) of files to make
    munge_socket: str = ""
    rootless: bool = False  # in a user namespace: nothing is done with root's rights


def setting(variables: "Mapping[str, str]", name: str) -> str:
    """A SHIFTER variable, or what the batch system set in its place; "" when neither is set."""
    return variables.get(name) or variables.get(SPANK + name) or ""


def select_image(option: str | None, variables: "Mapping[str, str]", default_kind: str) -> tuple[Reference, str]:
    """(image, as the user named it). Raises StartRefused: no image named, or a malformed name."""
    try:
        job = job_image(variables, default_kind)
        wish = setting(variables, "SHIFTER_IMAGEREQUEST")
        if option is not None:
            wanted = parse_reference(option, default_kind)
            if job and job.kind == "id" and wish and parse_reference(wish, default_kind) == wanted:
                return job, str(wanted)  # looked up when the job was submitted: every node gets the same image
            return wanted, str(wanted)
        if job:
            return job, wish or str(job)
    except ReferenceInvalid as error:
        raise StartRefused(f"image: {error}") from None
    raise StartRefused("no image named: use --image=docker:NAME:TAG, or set SHIFTER_IMAGE")


def job_image(variables: "Mapping[str, str]", default_kind: str) -> Reference | None:
    """The image that the environment names, or None."""
    if variables.get("SHIFTER"):
        return parse_reference(variables["SHIFTER"], default_kind)
    for prefix in ("", SPANK):
        image, kind = variables.get(f"{prefix}SHIFTER_IMAGE"), variables.get(f"{prefix}SHIFTER_IMAGETYPE")
        if image:
            return parse_reference(f"{kind}:{image}" if kind else image, default_kind)
    return None


def pair(text: str, option: str) -> tuple[str, str]:
    """(name, value) of NAME=VALUE. Raises StartRefused."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise StartRefused(f"{option} {text!r}: write NAME=VALUE; NAME= sets it to nothing")
    return name, value


def parse_modules(text: str) -> tuple[str, ...]:
    """Names separated by commas; `none` is none."""
    names = tuple(name.strip() for name in text.replace(";", ",").split(",") if name.strip())
    return () if names == ("none",) else names


def from_records(records: "Iterable[list[str]]", default_kind: str) -> Request:
    """The request in the launcher's records. Raises StartRefused: what the options say cannot be."""
    options: dict[str, list[str | None]] = {}
    variables: dict[str, str] = {}
    uid = gid = -1
    groups: tuple[int, ...] = ()
    has_arguments = rootless = False
    for fields in records:
        if fields[0] == "option":
            options.setdefault(fields[1], []).append(fields[3] if fields[2] else None)
        elif fields[0] == "user":
            uid, gid, groups = int(fields[1]), int(fields[2]), tuple(int(group) for group in fields[3:])
        elif fields[0] == "environment":
            name, _, value = fields[1].partition("=")
            variables.setdefault(name, value)
        elif fields[0] == "rights":
            rootless = fields[1] == "caller"
        elif fields[0] == "end":
            has_arguments = fields[1] == "arguments"

    def every(name: str) -> tuple[str, ...]:
        return tuple(value or "" for value in options.get(name, ()))

    def last(name: str) -> str | None:
        return (options[name][-1] or "") if name in options else None

    image, requested = select_image(last("image"), variables, default_kind)
    modules = last("module") if "module" in options else setting(variables, "SHIFTER_MODULE") or None
    try:
        volumes = parse_volumes(";".join(every("volume")) or setting(variables, "SHIFTER_VOLUME"))
        check_user_volumes(volumes)
    except VolumeInvalid as error:
        raise StartRefused(str(error)) from None
    return Request(
        uid=uid,
        gid=gid,
        groups=groups,
        image=image,
        requested=requested,
        volumes=volumes,
        modules=None if modules is None else parse_modules(modules),
        environment=tuple(pair(value, "--env") for value in every("env")),
        environment_file=every("env-file"),
        clear_environment="clearenv" in options or "keep-env" in options,
        keep=tuple(name for value in every("keep-env") for name in value.split(",") if name),
        unset=tuple(name for value in every("unset-env") for name in value.split(",") if name),
        entrypoint=last("entrypoint"),
        workdir=last("workdir"),
        gpu=None if "gpu" not in options else last("gpu") or "all",
        has_arguments=has_arguments,
        plan_only="plan" in options,
        json="json" in options,
        verbose="verbose" in options,
        munge_socket=variables.get("MUNGE_SOCKET", ""),
        rootless=rootless,
    )
