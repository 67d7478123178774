"""MPI jobs in containers on a real cluster: an image's own MPICH, the site's in its place, and the image's mpiexec over ssh."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.cluster import until
from tests.requires import lack, requires
from tests.site import mpi_image
from tests.site.slurm_jobs import Jobs, slurm_site
from wlm.sshd_bundle import bundle

pytestmark = [pytest.mark.slurm, requires("mpicc.mpich", "mpiexec.hydra", "umoci", "patchelf", "sshd")]

JOIN = ("--exclusive", "--image=mpi:1")
# Emulated nodes share one machine: between them only its loopback is a network.
IMAGES_NETWORK = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
SITES_NETWORK = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    sites_own = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if not sites_own.exists():
        lack(f"there is no second MPICH at {sites_own}: pip install mpich (`make build` does)")
    udi_image = tmp_path_factory.mktemp("udiImage")
    bundle(udi_image)
    udiroot = [f"optUdiImage={udi_image}", "siteEnvAppend=PATH=/opt/udiImage/bin"]
    with slurm_site(4, spank="enable_sshd=1", udiroot=udiroot) as found:
        tree = found.site.directory / "tree"
        mpi_image.tree(tree)
        for program in ("mpiexec.hydra", "hydra_pmi_proxy"):
            add_program(tree, Path("/usr/bin") / program)
        mpi_image.layout(found.site.directory / "oci" / "mpi", tree)
        found.site.push(f"{found.site.directory}/oci/mpi:latest", "mpi:1")
        found.pull("mpi:1")
        module = found.site.directory / "modules" / "mpich"
        collect = [str(found.site.bin / "prepare-mpi"), "collect", "--output", str(module), str(sites_own)]
        report = subprocess.run(collect, check=True, capture_output=True, text=True).stdout
        with (found.site.directory / "etc" / "udiRoot.conf").open("a") as conf:
            conf.writelines(line.strip() + "\n" for line in report.splitlines() if line.startswith("  module_mpich_"))
        yield found


def add_program(tree: Path, program: Path) -> None:
    for file in [program, *mpi_image.loaded(program)]:
        place = tree / file.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        place.chmod(0o755)


def versions(jobs: Jobs, ranks: int, command: str, *options: str, network: dict[str, str]) -> set[str]:
    """The MPI library's versions that the ranks of a job report; all ranks must have met.

    The job is cancelled then: over the one loopback of emulated nodes, Debian's UCX does not always come back from MPI_Finalize,
    with or without a container.
    """
    job = jobs.sbatch(command, *JOIN, *options, env=network)
    output = jobs.scratch / f"{job}.out"
    until(
        lambda: output.exists() and output.read_text().count("hello from") == ranks, f"{ranks} ranks of job {job} meet"
    )
    jobs.run("scancel", job)
    jobs.wait(job)
    total = sum(range(ranks))
    met = [f"hello from {rank} of {ranks}, ranks add up to {total}" for rank in range(ranks)]
    lines = [line for line in output.read_text().splitlines() if line.startswith("hello")]
    assert sorted(line.partition(", MPICH")[0] for line in lines) == sorted(met)
    return set(re.findall(r"MPICH Version:\s*(\S+)", "\n".join(lines)))


def test_srun_starts_8_ranks_on_4_nodes_with_the_images_mpi(jobs: Jobs) -> None:
    (version,) = versions(jobs, 8, "srun --mpi=pmi2 -N4 -n8 shifter /app/hello", "-N4", network=IMAGES_NETWORK)
    assert version.startswith("4.")


def test_srun_starts_8_ranks_on_4_nodes_with_the_sites_mpi_in_its_place(jobs: Jobs) -> None:
    command = "srun --mpi=pmi2 -N4 -n8 shifter /app/hello"
    (version,) = versions(jobs, 8, command, "-N4", "--module=mpich", network=SITES_NETWORK)
    assert not version.startswith("4.")


def test_the_images_own_mpiexec_reaches_all_nodes_over_ssh(jobs: Jobs) -> None:
    run = "mpiexec.hydra -launcher ssh -launcher-exec /opt/udiImage/bin/ssh -f /var/hostsfile -n 8 /app/hello"
    (version,) = versions(jobs, 8, f"shifter {run}", "-N4", network=IMAGES_NETWORK)
    assert version.startswith("4.")
