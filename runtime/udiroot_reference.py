"""Writes what people read about udiRoot.conf from the table that the parser reads: one source, so they cannot differ.

``markdown``, ``manual`` and ``example`` return the text of ``docs/udiroot.md``, ``docs/man/udiRoot.conf.5`` and
``etc/udiRoot.conf.example``; ``python -m runtime.udiroot_reference`` writes the three into this checkout. Nodes do not
need this module.
"""

from __future__ import annotations

import os
import sys

from runtime.udiroot import KEYS, MODULE_KEYS, Key

KINDS = {
    "path": "absolute path",
    "program": "absolute path of a program",
    "text": "text",
    "flag": "0 or 1",
    "count": "whole number",
    "seconds": "seconds",
    "size": "bytes; units b k m g t p e",
    "words": "list, by spaces",
    "commas": "list, by commas or spaces",
    "names": "list, by spaces or commas",
    "envs": "NAME=VALUE, by spaces",
    "volumes": "FROM:TO[:flag...], by semicolons",
}

EXAMPLES = {
    "udiMount": "/var/udiMount",
    "loopMount": "/var/loopMount",
    "imagePath": "/shared/shifter/images",
    "system": "mycluster",
    "imageGateway": "http://gateway1:5000 http://gateway2:5000",
    "etcPath": "/etc/shifter/shifter_etc_files",
    "siteFs": "/home:/home;/scratch:/scratch:slave:rec",
    "siteEnv": "SHIFTER_RUNTIME=1",
    "siteEnvPrepend": "PATH=/opt/udiImage/bin",
    "siteEnvAppend": "PATH=/opt/site/bin",
    "siteEnvUnset": "LOADEDMODULES _LMFILES_",
    "siteResources": "/opt/shifter/site-resources",
    "sitePreMountHook": "/etc/shifter/premount.sh",
    "sitePostMountHook": "/etc/shifter/postmount.sh",
    "optUdiImage": "/opt/shifter/udiImage",
    "defaultModules": "mpich",
    "usersToImport": "munge,slurm",
    "perNodeCachePath": "/scratch/perNodeCache",
    "perNodeCacheSizeLimit": "200g",
    "gpu": "all",
    "batchType": "slurm",
}
"""What a site might write; for the keys whose default does not show it."""

MODULE_EXAMPLE = (
    ("module_mpich_copyPath", "/opt/shifter/modules/mpich"),
    ("module_mpich_siteEnvPrepend", "LD_LIBRARY_PATH=/opt/udiImage/modules/mpich/lib64"),
    ("module_mpich_userhook", "/opt/udiImage/modules/mpich/bin/check.sh"),
    ("module_cvmfs_siteFs", "/cvmfs_nfs:/cvmfs"),
    ("module_cvmfs_siteEnv", "SHIFTER_MODULE_CVMFS=1"),
)

_INTRODUCTION = (
    "Read by shifter, shifterimg, setupRoot and unsetupRoot. It must be owned by root and writable by nobody else. "
    "A line is KEY=VALUE; a backslash at its end continues it; # in the first column begins a comment. "
    "An unknown key is an error that names the nearest known one."
)
_MODULES = (
    "A module is a set of changes that a user names with --module, or that defaultModules names for all. "
    "Modules are applied in the order in which they are named, the site's own settings after them. "
    "--module=none leaves all of them out."
)


def kind_text(key: Key) -> str:
    """What may stand behind the equals sign."""
    return KINDS.get(key.kind) or " or ".join(key.kind.split("|"))


def default_text(key: Key) -> str:
    """The default as a site would write it; "" when there is none."""
    if isinstance(key.default, bool):
        return str(int(key.default))
    if isinstance(key.default, tuple):
        return " ".join(map(str, key.default))
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)


def markdown() -> str:
    """``docs/udiroot.md``."""
    lines = ["# udiRoot.conf", "", "<!-- written by `python -m runtime.udiroot_reference` -->", "", _INTRODUCTION, ""]
    lines += ["| key | value | default | what it is for |", "|---|---|---|---|"]
    lines += [_row(key) for key in KEYS if not key.deprecated]
    lines += ["", "## Modules", "", _MODULES, "", "| key | value | default | what it is for |", "|---|---|---|---|"]
    lines += [_row(key, "module_*name*_") for key in MODULE_KEYS]
    lines += ["", "```", *(f"{name}={value}" for name, value in MODULE_EXAMPLE), "```", ""]
    lines += ["## Accepted without effect", "", "Old files may hold these; `shifter -v` warns.", ""]
    lines += ["| key | why |", "|---|---|", *(f"| `{key.name}` | {key.deprecated} |" for key in KEYS if key.deprecated)]
    return "\n".join(lines) + "\n"


def _row(key: Key, prefix: str = "") -> str:
    default = "**required**" if key.required else (f"`{default_text(key)}`" if default_text(key) else "")
    return f"| {prefix}`{key.name}` | {kind_text(key)} | {default} | {key.doc.replace('|', chr(92) + '|')} |"


def manual() -> str:
    """``docs/man/udiRoot.conf.5``."""
    lines = ['.TH UDIROOT.CONF 5 "" "Shifter 26.11" "File formats"', ".SH NAME"]
    lines += ["udiRoot.conf \\- what a site says about its nodes to shifter", ".SH DESCRIPTION", _roff(_INTRODUCTION)]
    lines += [".SH KEYS"]
    for key in KEYS:
        if not key.deprecated:
            lines += _entry(key, "")
    lines += [".SH MODULES", _roff(_MODULES)]
    for key in MODULE_KEYS:
        lines += _entry(key, "module_NAME_")
    lines += [".SH ACCEPTED WITHOUT EFFECT"]
    for key in KEYS:
        if key.deprecated:
            lines += [".TP", f".B {_roff(key.name)}", _roff(f"{key.deprecated}.")]
    lines += [".SH EXAMPLES", ".nf", *(_roff(f"{name}={EXAMPLES[name]}") for name in EXAMPLES if _required(name))]
    lines += [*(_roff(f"{name}={value}") for name, value in MODULE_EXAMPLE), ".fi"]
    lines += [".SH SEE ALSO", ".BR shifter (1),", ".BR shifterimg (1),", ".BR setupRoot (8),", ".BR prepare\\-mpi (8)"]
    return "\n".join(lines) + "\n"


def _required(name: str) -> bool:
    return next(key.required for key in KEYS if key.name == name)


def _entry(key: Key, prefix: str) -> list[str]:
    default = "required" if key.required else (f"default {default_text(key)}" if default_text(key) else "no default")
    return [".TP", f".BR {_roff(prefix + key.name)} \\ ({_argument(f'{kind_text(key)}; {default}')})", _roff(key.doc)]


def _argument(text: str) -> str:
    """One argument of a macro: its spaces must not end it."""
    return _roff(text).replace(" ", "\\ ")


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def example() -> str:
    """``etc/udiRoot.conf.example``: required keys set, all others as comments with their default or an example."""
    lines = [f"# {text}" for text in _wrapped(f"udiRoot.conf. {_INTRODUCTION}")]
    for key in KEYS:
        if key.deprecated:
            continue
        said = f"{kind_text(key)}; " + ("required" if key.required else f"default: {default_text(key) or 'none'}")
        value = EXAMPLES.get(key.name) or default_text(key)
        lines += ["", f"# {key.doc} ({said})", f"{'' if key.required else '#'}{key.name}={value}"]
    lines += ["", *(f"# {text}" for text in _wrapped(_MODULES)), "# Settings of a module:"]
    lines += [f"#   module_NAME_{key.name}: {key.doc} ({kind_text(key)})" for key in MODULE_KEYS]
    lines += [f"#{name}={value}" for name, value in MODULE_EXAMPLE]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 116)


FILES = {"docs/udiroot.md": markdown, "docs/man/udiRoot.conf.5": manual, "etc/udiRoot.conf.example": example}


def main() -> int:
    """Write the three files; prints those that changed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name, text in FILES.items():
        path = os.path.join(root, name)
        try:
            with open(path, encoding="utf-8") as file:
                before = file.read()
        except FileNotFoundError:
            before = ""
        if before != text():
            with open(path, "w", encoding="utf-8") as file:
                file.write(text())
            print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
