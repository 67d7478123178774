"""Prolog and epilog for workload managers other than Slurm, on one emulated node: the generic pair, and PBS's words for it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site.slurm_jobs import ALICE, Jobs, slurm_site

pytestmark = pytest.mark.slurm

SCRIPTS = Path(__file__).parents[2] / "etc" / "wlm"

# What Torque's `qstat -f` prints, wrapped as it does. It stands in for a PBS server, of which Debian has no package.
QSTAT = """#!/bin/sh
[ "$1 $2" = "-f 99.server" ] || exit 1
cat <<'END'
Job Id: 99.server
    Job_Name = test
    exec_host = n1/0+n1/1+n2/0
    Variable_List = PBS_O_HOME=/home/x,SHIFTER_IMAGETYPE=id,
\tSHIFTER_IMAGE={first}
\t{rest},SHIFTER_VOLUME={volume}
    comment = none
END
"""


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with slurm_site(1) as found:
        yield found


def on_node(
    jobs: Jobs, script: str, *arguments: str, input: str = "", path: str = ""
) -> subprocess.CompletedProcess[str]:
    conf = jobs.site.directory / "etc" / "udiRoot.conf"
    enter = ["nsenter", "--target", str(jobs.cluster.pid("n1")), "--mount", "--uts", "--ipc", "--pid"]
    environment = {"SHIFTER_CONFIG": str(conf), "PATH": f"{path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = [*enter, str(SCRIPTS / script), *arguments]
    return subprocess.run(argv, env=environment, input=input, capture_output=True, text=True, check=False)


def prepared(jobs: Jobs, file: str) -> str:
    return jobs.cluster.on_node("n1", ["cat", f"{jobs.site.directory}/var/udiMount/{file}"]).stdout


def test_the_generic_pair_prepares_and_clears_a_node(jobs: Jobs) -> None:
    image = jobs.run("shifterimg", "lookup", "busybox:1").stdout.strip()
    environment = f"HOME=/\nSHIFTER_IMAGE={image}\nSHIFTER_IMAGETYPE=id\nSHIFTER_EVIL=$(reboot)\nSHIFTER_IMAGE x=1\n"
    done = on_node(jobs, "prolog.generic", "12", str(ALICE), str(ALICE), "n1/2 n2/1", input=environment)
    assert (done.returncode, done.stdout) == (0, ""), done
    assert prepared(jobs, "var/hostsfile") == "n1\nn1\nn2\n"
    assert on_node(jobs, "epilog.generic", "12").returncode == 0
    assert prepared(jobs, "var/hostsfile") == ""
    assert on_node(jobs, "prolog.generic", "13", str(ALICE), str(ALICE), "n1/1", input="HOME=/\n").returncode == 0
    assert prepared(jobs, "var/hostsfile") == ""


def test_a_users_mistake_has_its_own_exit_status_and_a_reason(jobs: Jobs) -> None:
    environment = f"SHIFTER_IMAGE={'a' * 64}\nSHIFTER_IMAGETYPE=id\n"
    done = on_node(jobs, "prolog.generic", "14", str(ALICE), str(ALICE), "n1/1", input=environment)
    assert done.returncode == 2
    assert done.stdout.startswith("shifter: job 14: no image id:aaaa")
    assert on_node(jobs, "epilog.generic", "14").returncode == 0


def test_the_pbs_pair_reads_variables_and_hosts_from_qstat(jobs: Jobs, tmp_path: Path) -> None:
    image = jobs.run("shifterimg", "lookup", "busybox:1").stdout.strip()
    program = tmp_path / "qstat"
    program.write_text(QSTAT.format(first=image[:30], rest=image[30:], volume=f"{jobs.scratch}:/mnt"))
    program.chmod(0o755)
    done = on_node(jobs, "prologue.pbs", "99.server", "daemon", "daemon", path=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, ""), done
    assert prepared(jobs, "var/hostsfile") == "n1\nn1\nn2\n"
    assert '"user":"daemon"' in prepared(jobs, "var/shifterConfig.json")
    assert on_node(jobs, "epilogue.pbs", "99.server", "daemon", "daemon").returncode == 0
    assert prepared(jobs, "var/hostsfile") == ""
    program.write_text(QSTAT.format(first="b" * 30, rest="b" * 34, volume=""))
    assert on_node(jobs, "prologue.pbs", "99.server", "daemon", "daemon", path=str(tmp_path)).returncode == 1
    assert on_node(jobs, "epilogue.pbs", "99.server", "daemon", "daemon").returncode == 0


@pytest.mark.parametrize("comma", [",", "\\,"], ids=["Torque", "PBS Pro"])
def test_a_pbs_variable_keeps_the_commas_of_its_value(tmp_path: Path, comma: str) -> None:
    facts = f"Job Id: 7\n    exec_host = n1/0\n    Variable_List = A=1,SHIFTER_MODULE=mpich{comma}gpu,\n\tB=x=y{comma}z,C=\n"
    (tmp_path / "facts").write_text(facts)
    programs = {"qstat": "cat {0}/facts", "prolog.generic": "cat > {0}/seen", "prologue.pbs": ""}
    for name, body in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{body.format(tmp_path)}\n" if body else (SCRIPTS / name).read_text())
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run([tmp_path / "prologue.pbs", "7.server", "daemon", "daemon"], env=environment, check=True)
    assert (tmp_path / "seen").read_text() == "A=1\nSHIFTER_MODULE=mpich,gpu\nB=x=y,z\nC=\n"
