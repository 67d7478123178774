"""Collects an sshd that runs in any image, also one without a C library: `/opt/udiImage/ssh` in containers.

OpenSSH programs are taken from this machine with every library they are linked to and the loader, and rewritten (patchelf)
to look for these in `/opt/udiImage/ssh/lib` only; nothing of the image is loaded, and nothing of this reaches the image's
programs. The directory belongs behind udiRoot.conf's optUdiImage. Needs patchelf and openssh-server on the machine that
collects, not on nodes. Repeat it after security updates of these packages.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PLACE = "/opt/udiImage/ssh"
PROGRAMS = {
    "sshd": ("/usr/sbin/sshd",),
    "ssh": ("/usr/bin/ssh",),
    "ssh-keygen": ("/usr/bin/ssh-keygen",),
    "scp": ("/usr/bin/scp",),
    "sh": ("/bin/dash", "/bin/sh"),  # for images without a shell, see wlm/session.py
    "sftp-server": ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"),
}
RPATH = ("--force-rpath", "--set-rpath", f"{PLACE}/lib")  # before LD_LIBRARY_PATH, which an image may set
COMMANDS = ("ssh", "scp")  # linked into /opt/udiImage/bin, for siteEnvAppend PATH=/opt/udiImage/bin


class BundleFailed(Exception):
    """A program or library is missing, or patchelf refused."""


def bundle(udi_image: Path) -> None:
    """Fills `udi_image`/ssh and `udi_image`/bin. What an earlier run left is replaced. Raises BundleFailed."""
    if shutil.which("patchelf") is None:
        raise BundleFailed("no patchelf here: install patchelf")
    place, fresh = udi_image / "ssh", udi_image / f".ssh.{os.getpid()}"
    (fresh / "lib").mkdir(parents=True, mode=0o755)
    try:
        for name, candidates in PROGRAMS.items():
            source = next((Path(path) for path in candidates if Path(path).exists()), None)
            if source is None:
                raise BundleFailed(f"no {candidates[0]} here: install openssh-server and openssh-client")
            loader = _collect(source, fresh / name, fresh / "lib")
            _patch(fresh / name, "--set-interpreter", f"{PLACE}/lib/{loader}", *RPATH)
        for library in sorted((fresh / "lib").iterdir()):
            if not library.name.startswith("ld-"):  # the loader itself needs nothing and must not be touched
                _patch(library, *RPATH)
        if place.exists():
            shutil.rmtree(place)
        fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    (udi_image / "bin").mkdir(exist_ok=True)
    for name in COMMANDS:
        link = udi_image / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"../ssh/{name}")


def _collect(program: Path, target: Path, libraries: Path) -> str:
    """Copies a program and all it is linked to; returns its loader's name."""
    shutil.copyfile(program, target)
    target.chmod(0o755)
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    loader = ""
    for line in done.stdout.splitlines():
        found = re.match(r"\s*(?:(\S+) => )?(/\S+|not found)", line)
        if found is None:
            continue  # linux-vdso: the kernel's own
        if found.group(2) == "not found":
            raise BundleFailed(f"{program} needs {found.group(1)}, which is not found on this machine")
        source = Path(found.group(2))
        name = Path(found.group(1) or source).name
        if name.startswith("ld-"):
            loader = name
        if not (libraries / name).exists():
            shutil.copyfile(source, libraries / name)
            (libraries / name).chmod(0o755)
    if not loader:
        raise BundleFailed(f"ldd does not name the loader of {program}: {done.stderr.strip() or 'is it dynamic?'}")
    return loader


def _patch(file: Path, *arguments: str) -> None:
    done = subprocess.run(["patchelf", *arguments, str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BundleFailed(f"patchelf {file.name}: {done.stderr.strip()}")


def main() -> int:
    """`python -m wlm.sshd_bundle DIRECTORY`: DIRECTORY is udiRoot.conf's optUdiImage."""
    parser = argparse.ArgumentParser(description="Collect the sshd for containers.")
    parser.add_argument("directory", type=Path, help="optUdiImage of udiRoot.conf")
    arguments = parser.parse_args()
    try:
        arguments.directory.mkdir(parents=True, exist_ok=True)
        bundle(arguments.directory)
    except (BundleFailed, OSError) as error:
        print(f"sshd_bundle: {error}", file=sys.stderr)
        return 1
    print(f"optUdiImage={arguments.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
