"""A site with a cluster for a module of tests, and jobs on it as a user submits and watches them."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import busybox_image, leftovers
from sim.cluster import Cluster, ClusterError, until
from sim.site import Site
from tests.requires import need, need_root

ALICE, BOB = 33, 1  # www-data and daemon: accounts that every Debian has
TOOLS = ("munged", "docker-registry", "skopeo", "gcc", "tar2sqfs", "slurmctld", "slurmd", "sbatch")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


@dataclass(frozen=True)
class Jobs:
    """A site, its cluster, and what users do with both. Job scripts write to `scratch`, which everybody may."""

    site: Site
    cluster: Cluster

    @property
    def scratch(self) -> Path:
        return self.site.directory / "scratch"

    def run(
        self,
        *argv: str,
        uid: int = ALICE,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command at a user's prompt, in the scratch directory."""
        return self.site.run_as(uid, argv, env=env, cwd=self.scratch, timeout=timeout, input=input)

    def srun(self, *argv: str, uid: int = ALICE, env: Mapping[str, str] | None = None) -> str:
        """What `srun` prints; it must succeed."""
        done = self.run("srun", *argv, uid=uid, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sbatch(self, script: str, *options: str, uid: int = ALICE, env: Mapping[str, str] | None = None) -> str:
        """Submits a script's lines (#! is put in front) and returns the job's number."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}"
        done = self.run(
            "sbatch",
            "--parsable",
            "-o",
            "%A.%a.out" if _array(options) else "%j.out",
            *options,
            uid=uid,
            env=env,
            input=text,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`, of its first record."""
        text = self.cluster.command("scontrol", "show", "job", job).split("\n\n")[0]
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def comment(self, job: str) -> str:
        """The reason that was left with a job."""
        lines = self.cluster.command("scontrol", "show", "job", job).splitlines()
        return next((line.partition("=")[2].strip() for line in lines if line.strip().startswith("AdminComment=")), "")

    def wait(self, job: str, seconds: float = 60.0) -> str:
        """The state in which a job ended, once its epilogs are done too."""
        until(lambda: not self.cluster.command("squeue", "-h", "-a", "-j", job).strip(), f"job {job} ends", seconds)
        return self.facts(job)["JobState"]

    def cancel(self, job: str) -> None:
        """Cancels a job and returns when it is over; once more while a requeue that was on its way brings it back."""

        def gone() -> bool:
            if self.cluster.command("squeue", "-h", "-a", "-j", job).strip():
                with suppress(ClusterError):  # it ended meanwhile
                    self.cluster.command("scancel", job)
                return False
            return True

        until(gone, f"job {job} is cancelled", 60.0)

    def wait_state(self, job: str, state: str, seconds: float = 30.0) -> None:
        until(lambda: self.facts(job)["JobState"] == state, f"job {job} is {state}", seconds)

    def output(self, job: str) -> str:
        return (self.scratch / f"{job}.out").read_text()

    def done(self, script: str, *options: str, uid: int = ALICE, env: Mapping[str, str] | None = None) -> str:
        """The output of a job that is submitted, and must complete."""
        job = self.sbatch(script, *options, uid=uid, env=env)
        state = self.wait(job)
        assert state == "COMPLETED", self.output(job)
        return self.output(job)

    def idle(self) -> None:
        """Returns when no job is left and every node is in service."""
        self.cluster.wait_idle(self.cluster.layout.names(), 60.0)

    def reasons(self) -> dict[str, str]:
        """Each node's state and reason."""
        lines = self.cluster.command("sinfo", "-h", "-N", "-o", "%N %T %E").splitlines()
        return {line.split()[0]: line.partition(" ")[2] for line in lines}

    def resume(self, node: str) -> None:
        self.cluster.command("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def push(self, name: str, release: str = "", members: Sequence[tarfile.TarInfo] = ()) -> None:
        """Puts a busybox image into the registry; `release` makes it another one, and tells it in /etc/release.

        `members` are directories and links that are then laid over it.
        """
        layout = self.site.directory / "oci" / (release or "busybox")
        if not layout.exists():
            busybox_image.write(layout)
            if release:
                _insert_layer(layout, release, members)
        self.site.push(f"{layout}:latest", name)

    def pull(self, name: str, uid: int = ALICE) -> str:
        """Has an image pulled and returns its identifier."""
        done = self.run("shifterimg", "pull", name, uid=uid)
        assert done.returncode == 0, done.stderr
        return self.run("shifterimg", "lookup", name, uid=uid).stdout.strip()


def _array(options: Sequence[str]) -> bool:
    return any(option.startswith(("--array", "-a")) for option in options)


def _insert_layer(layout: Path, release: str, members: Sequence[tarfile.TarInfo]) -> None:
    """Adds a layer with /etc/release, and `members`, to the only image of an OCI layout."""
    blobs = layout / "blobs" / "sha256"

    def put(content: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return f"sha256:{digest}", len(content)

    def get(described: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((blobs / described["digest"].removeprefix("sha256:")).read_text())
        return document

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("etc/release")
        member.size = len(release) + 1
        tar.addfile(member, io.BytesIO(f"{release}\n".encode()))
        for other in members:
            tar.addfile(other)
    digest, size = put(buffer.getvalue())
    index = json.loads((layout / "index.json").read_text())
    manifest = get(index["manifests"][0])
    config = get(manifest["config"])
    config["rootfs"]["diff_ids"].append(digest)
    manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
    manifest["config"]["digest"], manifest["config"]["size"] = put(json.dumps(config).encode())
    index["manifests"][0]["digest"], index["manifests"][0]["size"] = put(json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))


@contextmanager
def slurm_site(
    nodes: int, *, spank: str = "", udiroot: Sequence[str] = (), slurm_conf: Mapping[str, str] | None = None,
    imagemanager: Sequence[tuple[str, str]] = (),
) -> Iterator[Jobs]:  # fmt: skip
    """A site with a cluster, `busybox:1` pulled, and further lines in udiRoot.conf and slurm.conf ({D}: the site's directory).

    `imagemanager` are texts to replace in imagemanager.json. Users' accounts have a shell and a home. Nothing may be left
    at the end.
    """
    need_root()
    need(*TOOLS)
    directory = Path(tempfile.mkdtemp(prefix="shifter-test-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        Site.up(directory / "site").down()  # writes the configuration, which is then completed
        conf = directory / "site" / "etc"
        with (conf / "udiRoot.conf").open("a") as file:
            file.writelines(line.replace("{D}", str(directory / "site")) + "\n" for line in udiroot)
        for old, new in imagemanager:
            text = (conf / "imagemanager.json").read_text()
            assert old in text
            (conf / "imagemanager.json").write_text(text.replace(old, new))
        passwd = conf / "shifter_etc_files" / "passwd"
        users = {ALICE: "www-data", BOB: "daemon"}
        kept = [line for line in passwd.read_text().splitlines() if line.split(":")[0] not in users.values()]
        kept += [f"{name}:x:{uid}:{uid}::{directory}/site/scratch:/bin/sh" for uid, name in users.items()]
        passwd.write_text("\n".join(kept) + "\n")
        keys = {key: value.replace("{D}", str(directory / "site")) for key, value in (slurm_conf or {}).items()}
        with Site.up(directory / "site", nodes=nodes, spank=spank, slurm_conf=keys) as site:
            jobs = Jobs(site, Cluster.at(site.directory / "slurm"))
            jobs.push("busybox:1")
            jobs.pull("busybox:1")
            yield jobs
        assert leftovers.of_site(directory) == []
    finally:
        shutil.rmtree(directory, ignore_errors=True)
