"""The command's environment, as operations on the caller's, in the documented order; each overrides the one before.

the host's (nothing with --clearenv, a part with --keep-env) < SHIFTER_IMAGEREQUEST and SHIFTER_IMAGE < the image's ENV (then
the GPU's, and --unset-env) < --env-file < --env < each module's siteEnv, Prepend, Append, Unset < the site's own. The
operations are applied by the launcher, so a plan does not hold the caller's variables.
"""

from runtime.plan import EnvAppend, EnvClear, EnvDefault, EnvPrepend, EnvSet, EnvUnset, Step
from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.cdi import Edits
    from runtime.request import Request
    from runtime.sidecar import ImageRecord
    from runtime.udiroot import Module, Udiroot
    from runtime.view import Host

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def steps(
    request: "Request", conf: "Udiroot", record: "ImageRecord", modules: "Sequence[Module]", host: "Host",
    gpu: "Edits | None" = None,
) -> list[Step]:  # fmt: skip
    """The operations of a start. Raises StartRefused: an --env-file that cannot be read or understood."""
    out: list[Step] = []
    if request.clear_environment:
        out.append(EnvClear((*request.keep, *(gpu.keep if gpu else ()))))
    out.append(EnvSet("SHIFTER_IMAGEREQUEST", request.requested))
    out.append(EnvSet("SHIFTER_IMAGE", record.id))
    for entry in record.env:
        name, equals, value = entry.partition("=")
        if equals and name:
            out.append(EnvSet(name, value))
    if gpu:
        out.extend(EnvSet(name, value) for name, value in gpu.environment)
        out.extend(EnvPrepend("LD_LIBRARY_PATH", directory) for directory in gpu.libraries)
    out.extend(EnvUnset(pattern) for pattern in request.unset)
    for path in request.environment_file:
        out.extend(EnvSet(name, value) for name, value in file_variables(path, host))
    out.extend(EnvSet(name, value) for name, value in request.environment)
    sources: tuple[Module | Udiroot, ...] = (*modules, conf)
    for source in sources:
        out.extend(EnvSet(name, value) for name, value in source.site_env)
        out.extend(EnvPrepend(name, value) for name, value in source.site_env_prepend)
        out.extend(EnvAppend(name, value) for name, value in source.site_env_append)
        out.extend(EnvUnset(name) for name in source.site_env_unset)
    out.append(EnvDefault("PATH", PATH))
    return out


def file_variables(path: str, host: "Host") -> list[tuple[str, str]]:
    """NAME=VALUE lines of an --env-file; empty lines and # comments are skipped, values are taken as they stand.

    Raises StartRefused.
    """
    try:
        text = host.user_text(path)
    except OSError as error:
        raise StartRefused(f"--env-file {path}: {error.strerror}: name a file that you can read") from None
    out = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        stripped = line.lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or name.split() != [name] or "\0" in value:
            raise StartRefused(f"--env-file {path}: line {number}: {line[:40]!r}: write NAME=VALUE, without `export`")
        out.append((name, value))
    return out
