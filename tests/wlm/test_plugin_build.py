"""The plugin and its programs, laid out below a prefix: small, without warnings, repeated only when something changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import wlm.install
from runtime.install import InstallFailed
from tests.requires import requires

pytestmark = requires("gcc", "slurmd")
LINES = 700


def code_lines(text: str) -> int:
    without = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in without.splitlines())


def test_the_plugin_is_small_enough_to_be_read() -> None:
    assert sum(code_lines(file.read_text()) for file in wlm.install.SOURCES.glob("*.[ch]")) < LINES
    assert sum(len(file.read_text().splitlines()) for file in wlm.install.SOURCES.glob("*.c")) < LINES


# Functions that Slurm 22.05.8, 24.11.5 and 26.05.5 all have, by the libraries of Debian's packages: the plugin was compiled and
# linked against each. What is added here is looked up in the newest of them first.
SLURMS = {
    "slurm_allocation_lookup", "slurm_error", "slurm_free_job_info_msg", "slurm_free_resource_allocation_response_msg",
    "slurm_hostlist_create", "slurm_hostlist_destroy", "slurm_hostlist_shift", "slurm_init_job_desc_msg",
    "slurm_init_update_node_msg", "slurm_load_job", "slurm_strerror", "slurm_update_job", "slurm_update_node",
    "spank_context", "spank_get_item", "spank_getenv", "spank_job_control_setenv", "spank_option_register", "spank_setenv",
}  # fmt: skip


def test_the_plugin_calls_only_what_every_slurm_from_22_05_to_26_05_has(tmp_path: Path) -> None:
    plugin = wlm.install.build(tmp_path)
    argv = ["nm", "-D", "--undefined-only", "--format=posix", str(plugin)]
    wanted = {
        line.split()[0] for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    }
    assert {name for name in wanted if name.startswith(("slurm_", "spank_"))} <= SLURMS


def test_build_twice_compiles_once(tmp_path: Path) -> None:
    plugin = wlm.install.build(tmp_path)
    first = plugin.stat().st_mtime_ns
    assert wlm.install.build(tmp_path) == plugin
    assert plugin.stat().st_mtime_ns == first
    wlm.install.build(tmp_path, Path("/elsewhere/udiRoot.conf"))
    assert plugin.stat().st_mtime_ns != first
    assert b"/elsewhere/udiRoot.conf" in plugin.read_bytes()
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", str(plugin)], capture_output=True, text=True, check=True
    ).stdout
    for hook in ("init", "init_post_opt", "user_init", "task_init", "task_post_fork", "job_prolog", "job_epilog"):
        assert f"slurm_spank_{hook}\n" in exported


def test_without_compiler_or_headers_the_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(InstallFailed, match="install gcc"):
        wlm.install.build(tmp_path)
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(InstallFailed, match="install libslurm-dev"):
        wlm.install.build(tmp_path)


def test_the_command_prints_the_line_for_plugstack(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "wlm.install", "--prefix", str(tmp_path), "--config", "/etc/udiRoot.conf"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(wlm.install.__file__).parents[1])
    assert done.stdout == f"required {tmp_path}/lib/shifter/shifter_slurm.so shifter_config=/etc/udiRoot.conf\n"
