"""Lays out what Slurm needs below a prefix: the plugin, compiled for the installed Slurm, and the programs it calls.

`build(prefix)` makes `<prefix>/lib/shifter/shifter_slurm.so` and `<prefix>/libexec/shifter/{shifter-wlm,wlm/}`; the
programs share `libexec/shifter/runtime`, which runtime.install lays out. A plugin loads only into the Slurm version
(22.05, 23.02 ...) for which it was compiled, so this is repeated after an upgrade. It is idempotent; it writes below
prefix only.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from runtime.install import InstallFailed, compile_bytecode, compiler, real_interpreter

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE / "slurm"
FLAGS = [
    "-std=gnu11", "-O2", "-g1", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wformat=2", "-Wstrict-prototypes", "-Wvla",
    "-D_GNU_SOURCE", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-fPIC", "-shared",
    "-Wl,-z,relro,-z,now,-z,noexecstack",
]  # fmt: skip


def build(prefix: Path, config: Path | None = None) -> Path:
    """Compiles the plugin and copies the programs; returns the plugin's path, for plugstack.conf.

    `config` is the udiRoot.conf of a plugin that is given no `shifter_config=` (default: /etc/shifter/udiRoot.conf).
    Raises InstallFailed: no compiler, no Slurm headers (libslurm-dev, slurm-devel), prefix not writable.
    """
    prefix = prefix.absolute()
    libexec, plugin = prefix / "libexec" / "shifter", prefix / "lib" / "shifter" / "shifter_slurm.so"
    for directory in (libexec / "wlm", plugin.parent):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for source in sorted(PACKAGE.glob("*.py")):
        if source.name != "install.py":
            shutil.copyfile(source, libexec / "wlm" / source.name)
            (libexec / "wlm" / source.name).chmod(0o644)
    compile_bytecode(libexec / "wlm", real_interpreter())
    script = libexec / "shifter-wlm"
    script.write_text(
        f"#!{real_interpreter()} -IS\n"
        "import sys\n"
        f"sys.path.insert(0, {str(libexec)!r})\n"
        "from wlm.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    script.chmod(0o755)
    _compile(plugin, config or Path("/etc/shifter/udiRoot.conf"))
    return plugin


def plugstack(plugin: Path, config: Path, arguments: str = "") -> str:
    """The text of a plugstack.conf. `required`: an optional plugin could not refuse a submission."""
    return f"required {plugin} shifter_config={config} {arguments}".rstrip() + "\n"


def _compile(plugin: Path, config: Path) -> None:
    flags = [*FLAGS, f'-DCONFIG_PATH="{config}"']
    content = b"".join(source.read_bytes() for source in sorted(SOURCES.glob("*.[ch]")))
    key = hashlib.sha256(content + " ".join(flags).encode() + _slurm_version()).hexdigest()
    stamp = plugin.with_suffix(".source")
    if plugin.exists() and stamp.exists() and stamp.read_text() == key:
        return
    fresh = plugin.with_name(f".{plugin.name}.{os.getpid()}")
    compiler([*flags, "-o", str(fresh), *map(str, sorted(SOURCES.glob("*.c")))], "compile the Slurm plugin")
    fresh.chmod(0o755)
    fresh.rename(plugin)
    stamp.write_text(key)


def _slurm_version() -> bytes:
    """What the headers say of their version: another one needs another plugin. Raises InstallFailed without headers."""
    question = "#include <slurm/slurm.h>\nSLURM_VERSION_NUMBER\n"
    try:
        done = subprocess.run(
            [os.environ.get("CC", "gcc"), "-E", "-P", "-"], input=question, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise InstallFailed("cannot compile the Slurm plugin: no C compiler: install gcc and libc6-dev") from None
    if done.returncode != 0:
        raise InstallFailed("cannot compile the Slurm plugin: no slurm/slurm.h: install libslurm-dev (slurm-devel)")
    return done.stdout.strip().splitlines()[-1].encode()


def main() -> int:
    """`python -m wlm.install --prefix DIR [--config UDIROOT.CONF]`: prints the line for plugstack.conf."""
    parser = argparse.ArgumentParser(description="Compile the Slurm plugin and lay out its programs.")
    parser.add_argument("--prefix", type=Path, required=True, help="udiRootPath of udiRoot.conf")
    parser.add_argument("--config", type=Path, default=Path("/etc/shifter/udiRoot.conf"), help="on the nodes")
    arguments = parser.parse_args()
    try:
        plugin = build(arguments.prefix, arguments.config)
    except (InstallFailed, OSError) as error:
        print(f"wlm.install: {error}", file=sys.stderr)
        return 1
    print(plugstack(plugin, arguments.config), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
