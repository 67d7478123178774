"""Small real shared libraries and programs, compiled in a test."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def library(
    path: Path, functions: Sequence[str], *, soname: str = "", needs: Sequence[Path] = (), calls: Sequence[str] = (),
    rpath: str = "", version: str = "",
) -> Path:  # fmt: skip
    """A library at `path` that exports `functions`, calls `calls` of the libraries in `needs`.

    With `version`, its symbols carry that version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "".join(f"int {name}(void);\n" for name in calls)
    body = " + ".join(f"{name}()" for name in calls) or "1"
    source += "".join(f"int {name}(void) {{ return {body}; }}\n" for name in functions)
    options = [f"-Wl,-soname,{soname or path.name}", *_link(needs, rpath)]
    if version:
        script = path.with_name(path.name + ".map")
        script.write_text(f"{version} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={script}")
    _compile(["-shared", "-fPIC"], source, path, options)
    return path


def program(path: Path, calls: Sequence[str], needs: Sequence[Path], rpath: str = "") -> Path:
    """A program at `path` that prints the sum of `calls`."""
    source = "#include <stdio.h>\n" + "".join(f"int {name}(void);\n" for name in calls)
    source += f'int main(void) {{ printf("%d\\n", {" + ".join(f"{name}()" for name in calls) or "0"}); return 0; }}\n'
    _compile([], source, path, _link(needs, rpath))
    return path


def _link(needs: Sequence[Path], rpath: str) -> list[str]:
    return [*map(str, needs), "-Wl,--allow-shlib-undefined", *([f"-Wl,-rpath,{rpath}"] if rpath else [])]


def _compile(options: Sequence[str], source: str, path: Path, link: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", *options, "-o", path, "-x", "c", "-", "-x", "none", *link]
    done = subprocess.run(command, input=source, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
