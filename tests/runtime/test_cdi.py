"""CDI with a vendor that does not exist: "maker.example", whose GPUs are files of the test's own."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.cdi import Edits, Mount, edits
from runtime.refusal import StartRefused
from tests.requires import requires_root

pytestmark = requires_root  # a specification must be root's


class Node:
    """A node's files and specifications below one directory; `host` is where the driver is installed."""

    def __init__(self, directory: Path) -> None:
        self.host = directory / "host"
        self.directories = [str(directory / "etc-cdi"), str(directory / "run-cdi")]
        for path in (self.host, *map(Path, self.directories)):
            path.mkdir()
        for name in ("libmaker.so.1", "maker-smi", "gpu0", "gpu1"):
            (self.host / name).touch()

    def write(self, document: dict[str, Any], name: str = "maker.json", where: int = 0) -> Path:
        path = Path(self.directories[where]) / name
        path.write_text(json.dumps(document))
        path.chmod(0o644)
        return path

    def ask(self, selection: str) -> Edits:
        return edits(selection, self.directories)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def two_gpus(node: Node) -> dict[str, Any]:
    """A library and a variable for all GPUs, and two of them."""
    library = {
        "hostPath": f"{node.host}/libmaker.so.1", "containerPath": "/usr/lib/libmaker.so.1", "options": ["ro", "bind"]
    }  # fmt: skip
    devices = [
        {
            "name": str(number),
            "containerEdits": {
                "env": [f"MAKER_{number}=yes"],
                "deviceNodes": [{"path": f"/opt/maker/gpu{number}", "hostPath": f"{node.host}/gpu{number}"}],
            },
        }
        for number in (0, 1)
    ]
    return {
        "cdiVersion": "0.6.0", "kind": "maker.example/gpu", "devices": devices,
        "containerEdits": {"env": ["MAKER=1"], "mounts": [library]},
    }  # fmt: skip


def targets(found: Edits) -> list[str]:
    return [mount.target for mount in found.mounts]


@pytest.mark.parametrize("selection", ["none", ""])
def test_none_adds_nothing_and_reads_nothing(node: Node, selection: str) -> None:
    node.write({"nonsense": True})
    assert node.ask(selection) == Edits()


def test_one_gpu_brings_the_vendors_library_and_its_own_device(node: Node) -> None:
    node.write(two_gpus(node))
    found = node.ask("1")
    assert found.mounts == (
        Mount(f"{node.host}/libmaker.so.1", "/usr/lib/libmaker.so.1", "file", True, "1"),
        Mount(f"{node.host}/gpu1", "/opt/maker/gpu1", "device", False, "1"),
    )
    assert dict(found.environment) == {"MAKER": "1", "MAKER_1": "yes", "CUDA_VISIBLE_DEVICES": "1"}


def test_several_share_what_they_share_and_the_variable_names_them(node: Node) -> None:
    node.write(two_gpus(node))
    found = node.ask("0,1")
    assert targets(found) == ["/usr/lib/libmaker.so.1", "/opt/maker/gpu0", "/opt/maker/gpu1"]
    assert dict(found.environment)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert node.ask("maker.example/gpu=0,maker.example/gpu=1") == found


def test_all_is_every_gpu_and_keeps_the_callers_variables_instead_of_setting_them(node: Node) -> None:
    node.write(two_gpus(node))
    found = node.ask("all")
    assert targets(found) == ["/usr/lib/libmaker.so.1", "/opt/maker/gpu0", "/opt/maker/gpu1"]
    assert dict(found.environment) == {"MAKER": "1", "MAKER_0": "yes", "MAKER_1": "yes"}
    assert {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"} <= set(found.keep)
    assert node.ask("1").keep == ()


def test_what_it_was_computed_from_is_told(node: Node) -> None:
    path = node.write(two_gpus(node))
    assert node.ask("0").files == (*node.directories, str(path))


def test_a_specifications_own_all_is_taken_for_all(node: Node) -> None:
    document = two_gpus(node)
    document["devices"].append({"name": "all", "containerEdits": {"env": ["MAKER_ALL=1"]}})
    node.write(document)
    assert dict(node.ask("all").environment) == {"MAKER": "1", "MAKER_ALL": "1"}


@pytest.mark.parametrize(
    ("vendor", "variable"),
    [
        ("nvidia.com", "CUDA_VISIBLE_DEVICES"),
        ("amd.com", "ROCR_VISIBLE_DEVICES"),
        ("intel.com", "ZE_AFFINITY_MASK"),
        ("maker.example", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_each_vendor_has_its_variable(node: Node, vendor: str, variable: str) -> None:
    node.write({**two_gpus(node), "kind": f"{vendor}/gpu"})
    assert dict(node.ask("1").environment)[variable] == "1"


def test_a_device_of_the_nodes_dev_needs_no_mount_but_must_be_there(node: Node) -> None:
    document = two_gpus(node)
    document["devices"] = [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}]
    node.write(document)
    assert targets(node.ask("0")) == ["/usr/lib/libmaker.so.1"]
    document["devices"] = [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-gpu"}]}}]
    node.write(document)
    with pytest.raises(StartRefused, match=r"maker.example/gpu=0: /dev/no-such-gpu is not there: the driver is not"):
        node.ask("0")


def test_hooks_that_make_links_become_mounts_also_of_links_to_links(node: Node) -> None:
    document = two_gpus(node)
    links = ["--link", "libmaker.so.1::/usr/lib/libmaker.so", "--link=../libmaker.so::/usr/lib/gbm/maker_gbm.so"]
    document["containerEdits"]["hooks"] = [
        {
            "hookName": "createContainer",
            "path": "/usr/bin/maker-hook",
            "args": ["maker-hook", "create-symlinks", *links],
        }
    ]
    node.write(document)
    source = f"{node.host}/libmaker.so.1"
    by_target = {mount.target: mount for mount in node.ask("0").mounts}
    assert by_target["/usr/lib/libmaker.so"].source == source
    assert by_target["/usr/lib/gbm/maker_gbm.so"].source == source


def test_the_linker_cache_hook_becomes_library_directories_and_unknown_hooks_are_named(node: Node) -> None:
    document = two_gpus(node)
    document["containerEdits"]["hooks"] = [
        {"args": ["maker-hook", "update-ldcache", "--folder", "/usr/lib/maker"]},
        {"args": ["maker-hook", "chmod", "--mode", "755"]},
        {"args": ["maker-hook", "phone-home", "now"]},
        {"args": ["maker-hook", "create-symlinks", "--link", "absent.so::/usr/lib/x.so"]},
    ]
    node.write(document)
    found = node.ask("0")
    assert found.libraries == ("/usr/lib/maker",)
    assert [note.partition(": ")[2] for note in found.notes] == [
        "hook maker-hook phone-home now is not run; no hook is",
        "link /usr/lib/x.so to absent.so is not made: no mount provides /usr/lib/absent.so",
    ]


def test_a_later_directory_takes_precedence_and_one_directory_may_not_contradict_itself(node: Node) -> None:
    node.write(two_gpus(node))
    newer = two_gpus(node)
    newer["containerEdits"]["env"] = ["MAKER=2"]
    node.write(newer, where=1)
    assert dict(node.ask("0").environment)["MAKER"] == "2"
    node.write(newer, "other.json", where=1)
    with pytest.raises(StartRefused, match=r"gpu=0 is described twice, in .*maker\.json and .*other\.json"):
        node.ask("0")


def test_yaml_is_read_as_well(node: Node) -> None:
    path = Path(node.directories[0]) / "maker.yaml"
    path.write_text(
        "---\ncdiVersion: 0.5.0\nkind: maker.example/gpu\n"
        'devices:\n- name: "0"\n  containerEdits:\n    env:\n    - MAKER=yaml\n'
    )
    path.chmod(0o644)
    assert dict(node.ask("0").environment) == {"MAKER": "yaml", "CUDA_VISIBLE_DEVICES": "0"}


def test_devices_of_another_class_are_no_gpus(node: Node) -> None:
    node.write({**two_gpus(node), "kind": "maker.example/nic"})
    with pytest.raises(StartRefused, match="no GPU is described on this node"):
        node.ask("all")


def test_a_node_without_gpus_says_where_they_would_be_described(node: Node) -> None:
    with pytest.raises(StartRefused, match=r"--gpu=all: no GPU is described on this node \(.*etc-cdi, .*run-cdi\)"):
        node.ask("all")


def test_an_unknown_gpu_is_refused_with_those_that_are_known(node: Node) -> None:
    node.write(two_gpus(node))
    with pytest.raises(
        StartRefused, match=r"no GPU '7' on this node; known are maker.example/gpu=0, maker.example/gpu=1"
    ):
        node.ask("0,7")


def test_a_number_that_two_vendors_have_must_be_said_whole(node: Node) -> None:
    node.write(two_gpus(node))
    node.write({**two_gpus(node), "kind": "other.example/gpu"}, "other.json")
    with pytest.raises(
        StartRefused, match=r"'0' may be maker.example/gpu=0 or other.example/gpu=0: give the whole name"
    ):
        node.ask("0")
    assert targets(node.ask("other.example/gpu=0"))


@pytest.mark.parametrize("damage", ["mode", "owner"])
def test_a_specification_that_others_may_write_is_refused(node: Node, damage: str) -> None:
    path = node.write(two_gpus(node))
    path.chmod(0o666) if damage == "mode" else os.chown(path, 65534, 65534)
    with pytest.raises(StartRefused, match=r"maker\.json: must be a file of root's that nobody else may write"):
        node.ask("all")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": None}, "is no CDI specification"),
        ({"kind": "maker"}, "is no CDI specification"),
        ({"cdiVersion": 1}, "is no CDI specification"),
        ({"devices": {"name": "0"}}, "stands where a list is expected"),
        ({"devices": ["0"]}, "stands where an object is expected"),
        ({"devices": [{}]}, "a device of it has no name"),
        ({"containerEdits": {"mounts": [{"hostPath": "x", "containerPath": "/x"}]}}, "'x' is no absolute path"),
        ({"containerEdits": {"mounts": [{"hostPath": "/etc/../x", "containerPath": "/x"}]}}, "is no absolute path"),
        ({"containerEdits": {"mounts": [{"hostPath": "/no/such", "containerPath": "/x"}]}}, "/no/such is not there"),
        ({"containerEdits": {"deviceNodes": [{"path": "/dev/maker", "hostPath": "/dev/null"}]}}, "/dev is the node's own"),
    ],
)  # fmt: skip
def test_a_damaged_specification_is_one_sentence_that_names_the_file(
    node: Node, change: dict[str, Any], why: str
) -> None:
    path = node.write({**two_gpus(node), **change})
    with pytest.raises(StartRefused) as caught:
        node.ask("all")
    assert why in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_no_json_is_refused_with_its_file(node: Node) -> None:
    path = node.write({})
    path.write_text('{"kind": ')
    with pytest.raises(StartRefused, match=r"maker\.json: cannot be read: Expecting value"):
        node.ask("all")
