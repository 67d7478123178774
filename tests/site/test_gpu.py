"""--gpu in real containers, with the CDI specification of a maker that does not exist.

Its driver is a library and a tool on the "node"; its GPUs are character devices that every node has, shown at paths of
the maker's own: /dev/zero and /dev/null are gpu0 and gpu1.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.site import Site
from tests.requires import requires_root
from tests.site.conftest import NOBODY

pytestmark = [requires_root, pytest.mark.site]


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Iterator[Site]:
    """A site whose node has the maker's driver and specification, with busybox:1 pulled."""
    driver = shared_site.directory / "driver"
    (driver / "share").mkdir(parents=True)
    (driver / "libmaker.so.1").write_text("the driver's library\n")
    (driver / "share" / "model").write_text("maker one\n")
    directory = shared_site.directory / "cdi"
    directory.mkdir()
    write(directory, driver)
    configuration = shared_site.directory / "etc" / "udiRoot.conf"
    configuration.write_text(f"{configuration.read_text()}cdiPath={directory}\n")
    pulled = shared_site.run_as(NOBODY, ["shifterimg", "pull", "busybox:1"])
    assert pulled.returncode == 0, pulled.stderr
    yield shared_site


def write(directory: Path, driver: Path, version: str = "1") -> None:
    mounts = [
        {"hostPath": f"{driver}/libmaker.so.1", "containerPath": "/usr/lib/maker/libmaker.so.1", "options": ["ro"]},
        {"hostPath": f"{driver}/share", "containerPath": "/usr/share/maker", "options": ["ro"]},
    ]
    links = ["--link", "libmaker.so.1::/usr/lib/maker/libmaker.so"]
    hooks = [
        {"hookName": "createContainer", "path": "/none", "args": ["maker-hook", "create-symlinks", *links]},
        {
            "hookName": "createContainer",
            "path": "/none",
            "args": ["maker-hook", "update-ldcache", "--folder", "/usr/lib/maker"],
        },
    ]
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": f"/opt/maker/gpu{name}", "hostPath": path}]}}
        for name, path in (("0", "/dev/zero"), ("1", "/dev/null"))
    ]
    specification = {
        "cdiVersion": "0.6.0", "kind": "maker.example/gpu", "devices": devices,
        "containerEdits": {"env": [f"MAKER_VERSION={version}"], "mounts": mounts, "hooks": hooks},
    }  # fmt: skip
    fresh = directory / "maker.new"
    fresh.write_text(json.dumps(specification))
    fresh.chmod(0o644)
    fresh.rename(directory / "maker.json")


def inside(site: Site, script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the shell in a container."""
    command = ["shifter", "--image=busybox:1", *options, "/bin/sh", "-c", script]
    return site.run_as(NOBODY, command, env=environment)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_container_gets_the_drivers_files_read_only_and_its_links(site: Site) -> None:
    script = "cat /usr/lib/maker/libmaker.so.1 /usr/lib/maker/libmaker.so /usr/share/maker/model; echo $LD_LIBRARY_PATH"
    assert said(inside(site, script, "--gpu")) == [
        "the driver's library", "the driver's library", "maker one", "/usr/lib/maker"
    ]  # fmt: skip
    assert inside(site, ": > /usr/share/maker/model", "--gpu").returncode != 0


def test_the_devices_work_and_are_those_that_were_asked_for(site: Site) -> None:
    assert said(inside(site, "ls /opt/maker; head -c 3 /opt/maker/gpu0 | wc -c", "--gpu=all")) == ["gpu0", "gpu1", "3"]
    script = "ls /opt/maker; wc -c </opt/maker/gpu1; echo $CUDA_VISIBLE_DEVICES"
    assert said(inside(site, script, "--gpu=1")) == ["gpu1", "0", "1"]


def test_without_gpu_and_with_none_there_is_nothing_of_it(site: Site) -> None:
    for options in ((), ("--gpu=none",)):
        assert said(inside(site, "ls -d /opt/maker /usr/lib/maker 2>/dev/null; echo [$MAKER_VERSION]", *options)) == [
            "[]"
        ]


def test_the_batch_systems_choice_is_kept_even_when_the_environment_is_cleared(site: Site) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES $OTHER $MAKER_VERSION"
    environment = {"CUDA_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0", "OTHER": "x"}
    assert said(inside(site, script, "--gpu", "--clearenv", **environment)) == ["1 0 1"]
    assert said(inside(site, script, "--gpu", CUDA_VISIBLE_DEVICES="0")) == ["0 1"]  # another caller, the same plan


def test_a_specification_that_changes_is_seen_by_the_next_start(site: Site) -> None:
    identifier = site.run_as(NOBODY, ["shifterimg", "lookup", "busybox:1"]).stdout.strip()
    command = ["shifter", f"--image=id:{identifier}", "--gpu=0", "/bin/sh", "-c", "echo $MAKER_VERSION"]
    assert [site.run_as(NOBODY, command).stdout for _ in range(2)] == ["1\n", "1\n"]
    write(site.directory / "cdi", site.directory / "driver", version="2")
    assert site.run_as(NOBODY, command).stdout == "2\n"
    write(site.directory / "cdi", site.directory / "driver")


def test_an_unknown_gpu_is_refused_with_those_of_the_node(site: Site) -> None:
    done = inside(site, "true", "--gpu=7")
    assert done.returncode == 1
    assert done.stderr == (
        "shifter: --gpu: there is no GPU '7' on this node; known are maker.example/gpu=0, maker.example/gpu=1\n"
    )


def test_a_specification_that_a_user_could_write_is_refused(site: Site) -> None:
    (site.directory / "cdi" / "maker.json").chmod(0o666)
    done = inside(site, "true", "--gpu")
    assert done.returncode == 1
    assert "maker.json: must be a file of root's that nobody else may write" in done.stderr
    (site.directory / "cdi" / "maker.json").chmod(0o644)
    assert inside(site, "true", "--gpu").returncode == 0
