"""What a site puts into every container: siteFs, modules, hooks, copies, /etc; and what a user may make of it."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node, only_line

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc")]


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny", {"etc/image-file": "the image's\n", "etc/motd": "the image's\n"})
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    before = dict(made.settings)
    yield made
    made.settings = before
    made.configure()
    made.drop_holds()
    assert made.left() == []


def said(node: Node, script: str, *words: str, env: dict[str, str] | None = None) -> str:
    done = node.start("--image=id:tiny", *words, "sh", "-c", script, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def directory(node: Node, name: str, **files: str) -> Path:
    made = nodes.public(node.directory / name)
    for file, text in files.items():
        (made / file).write_text(text)
        (made / file).chmod(0o755)
    return made


def script(node: Node, name: str, text: str) -> Path:
    path = node.directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_site_directories_appear_in_every_container(node: Node) -> None:
    data = directory(node, "global", project="p\n")
    node.configure(siteFs=f"{data}:/global/project;\\\n  {data}/project:/etc-like/file;{data}:{data}")
    assert said(node, f"cat /global/project/project /etc-like/file {data}/project") == "p\np\np\n"


@pytest.mark.parametrize(
    ("flags", "sees"), [("", ""), (":rec", "below\n"), (":rec:slave", "below\n"), (":rec:private", "below\n")]
)
def test_a_recursive_site_directory_shows_what_is_mounted_below_it(node: Node, flags: str, sees: str) -> None:
    data = directory(node, "parent")
    (data / "below").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(data / "below")], check=True)
    try:
        (data / "below/note").write_text("below\n")
        node.configure(siteFs=f"{data}:/data{flags}")
        assert said(node, "cat /data/below/note 2>/dev/null || true") == sees
    finally:
        subprocess.run(["umount", str(data / "below")], check=True)


def test_a_slave_sees_later_mounts_of_the_host_and_a_private_one_does_not(node: Node) -> None:
    data = directory(node, "later")
    (data / "new").mkdir(exist_ok=True)
    for flags, style, sees in (
        ("rec:slave", "slave", True),
        ("rec:private", "slave", False),
        ("rec", "private", False),
    ):
        node.configure(siteFs=f"{data}:/data:{flags}", mountPropagationStyle=style)
        host = f"{node.shifter} --image=id:tiny sh -c 'echo ready; read _; ls /data/new'"
        script_text = f"""
            set -e
            mount --bind {data} {data}; mount --make-shared {data}
            coproc {{ exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {host}; }}
            read line <&${{COPROC[0]}}; test "$line" = ready
            mount -t tmpfs none {data}/new; touch {data}/new/late
            out=${{COPROC[0]}}; exec 8<&$out; echo >&${{COPROC[1]}}; cat <&8
        """
        done = subprocess.run(
            ["unshare", "-m", "bash", "-c", script_text], capture_output=True, text=True, check=True, cwd="/"
        )
        assert ("late" in done.stdout) is sees, (flags, style, done)


def test_hooks_run_as_root_in_the_root_before_and_after_the_site_directories(node: Node) -> None:
    data = directory(node, "u1", file="u1\n")
    node.configure(
        siteFs=f"{data}:/global/u1",
        sitePreMountHook=str(script(node, "pre.sh", "mkdir global && id -u > global/made-by && pwd >> global/made-by")),
        sitePostMountHook=str(script(node, "post.sh", "ln -s global/u1 u1 && cat global/u1/file > seen")),
    )
    assert said(node, "cat /global/made-by /u1/file /seen") == f"0\n{node.directory}/udiMount\nu1\nu1\n"


def test_a_hook_that_fails_ends_the_start(node: Node) -> None:
    node.configure(sitePreMountHook=str(script(node, "bad.sh", "exit 3")))
    assert "bad.sh: exit status 3: the container is not started" in only_line(node.start("--image=id:tiny", "true"))


def test_a_hook_has_nothing_of_the_users_environment(node: Node) -> None:
    hook = script(node, "env.sh", "mkdir -p out && env > out/env")
    node.configure(sitePreMountHook=str(hook))
    out = said(node, "cat /out/env", env={"LD_PRELOAD": "/tmp/evil.so", "IFS": "x", "BASH_ENV": "/tmp/evil"})
    assert "evil" not in out


def test_a_module_brings_its_files_variables_and_hooks(node: Node) -> None:
    data = directory(node, "cvmfs", file="cvmfs\n")
    copied = directory(node, "mpich", **{"libmpi.so": "lib\n", "init.sh": "echo checked $SHIFTER_MODULE_MPICH >&2"})
    (copied / "lib64").mkdir(exist_ok=True)
    (copied / "lib64/link").unlink(missing_ok=True)
    (copied / "lib64/link").symlink_to("../libmpi.so")
    node.configure(
        module_cvmfs_siteFs=f"{data}:/cvmfs",
        module_cvmfs_siteEnv="SHIFTER_MODULE_CVMFS=1",
        module_mpich_copyPath=str(copied),
        module_mpich_siteEnv="SHIFTER_MODULE_MPICH=1",
        module_mpich_siteEnvPrepend="MANPATH=/opt/udiImage/modules/mpich/lib64",
        module_mpich_siteEnvAppend="WORDS=last",
        module_mpich_siteEnvUnset="SECRET",
        module_mpich_userhook="/opt/udiImage/modules/mpich/init.sh",
        module_mpich_roothook=str(script(node, "root.sh", "echo rooted > opt/udiImage/modules/mpich/rooted")),
    )
    env = {"MANPATH": "/own", "WORDS": "first", "SECRET": "x"}
    done = node.start(
        "--image=id:tiny", "--module=cvmfs,mpich", "sh", "-c",
        "cat /cvmfs/file /opt/udiImage/modules/mpich/lib64/link /opt/udiImage/modules/mpich/rooted; "
        "echo $SHIFTER_MODULE_CVMFS $MANPATH $WORDS $SECRET", env=env,
    )  # fmt: skip
    assert done.stdout == "cvmfs\nlib\nrooted\n1 /opt/udiImage/modules/mpich/lib64:/own first:last\n"
    assert done.stderr == "checked 1\n"
    assert said(node, "ls -d /cvmfs /opt/udiImage 2>/dev/null || true") == ""


def test_default_modules_conflicts_and_modules_that_are_off(node: Node) -> None:
    node.configure(
        module_a_siteEnv="A=1", module_b_siteEnv="B=1", module_b_conflict="a c", module_off_siteEnv="OFF=1",
        module_off_enabled="0", defaultModules="a",
    )  # fmt: skip
    assert said(node, "echo $A$B") == "1\n"
    assert said(node, "echo [$A$B]", "--module=none") == "[]\n"
    assert said(node, "echo [$A$B]", env={"SHIFTER_MODULE": "b"}) == "[1]\n"
    assert "modules 'b' and 'a' exclude each other" in only_line(node.start("--image=id:tiny", "-m", "a,b", "true"))
    assert "module 'off' is not known here" in only_line(node.start("--image=id:tiny", "-m", "off", "true"))


def test_a_user_hook_that_fails_ends_the_start_before_the_command(node: Node) -> None:
    node.configure(module_check_userhook="/tmp/no-such-hook")
    done = node.start("--image=id:tiny", "-m", "check", "echo", "ran")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "shifter: user hook /tmp/no-such-hook: exit status 2: the container is not started" in done.stderr


def test_site_variables_come_after_the_modules_and_the_users(node: Node) -> None:
    node.configure(
        module_m_siteEnv="WHO=module ONLY=module", defaultModules="m", siteEnv="WHO=site SHIFTER_RUNTIME=1",
        siteEnvPrepend="LIST=front", siteEnvAppend="LIST=back", siteEnvUnset="LOADEDMODULES _LMFILES_",
    )  # fmt: skip
    out = said(
        node, "echo $WHO $ONLY $LIST $SHIFTER_RUNTIME [$LOADEDMODULES]", "--env=WHO=user", "--env=LIST=mine",
        env={"LOADEDMODULES": "x"},
    )  # fmt: skip
    assert out == "site module front:mine:back 1 []\n"


def test_the_sites_etc_files_cover_the_images(node: Node) -> None:
    (node.directory / "etc/motd").write_text("the site's\n")
    (node.directory / "etc/deep").mkdir(exist_ok=True)
    (node.directory / "etc/deep/file").write_text("deep\n")
    (node.directory / "etc/nsswitch.conf").write_text("passwd: files\n")
    try:
        out = said(
            node,
            "cat /etc/motd /etc/image-file /etc/deep/file /etc/nsswitch.conf; readlink /etc/mtab; wc -c /etc/shadow 2>&1 || true",
        )
    finally:
        (node.directory / "etc/motd").unlink()
        (node.directory / "etc/nsswitch.conf").unlink()
    assert out == "the site's\nthe image's\ndeep\npasswd: files\n/proc/mounts\nwc: /etc/shadow: Permission denied\n"


def test_groups_are_filtered_and_users_imported(node: Node) -> None:
    groups = "".join(f"g{number}:x:{number}:\n" for number in range(100, 160))
    (node.directory / "etc/group").write_text(nodes.GROUP + groups)
    node.configure(maxGroupCount="3", usersToImport="daemon,absent")
    try:
        done = node.start("--image=id:tiny", "cat", "/etc/group", "/etc/passwd", groups=range(100, 120))
    finally:
        (node.directory / "etc/group").write_text(nodes.GROUP)
    assert done.stdout.splitlines() == [
        f"nogroup:x:{NOBODY}:nobody", "g100:x:100:nobody", "g101:x:101:nobody",
        f"nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/bin/sh", "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin",
    ]  # fmt: skip


def test_the_user_may_come_from_the_c_library(node: Node) -> None:
    text = (node.directory / "etc/passwd").read_text()
    (node.directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    try:
        assert "no passwd entry" in only_line(node.start("--image=id:tiny", "true"))
        node.configure(allowLibcPwdCalls="1")
        assert said(node, "id -un") == "nobody\n"
        (node.directory / "etc/passwd").write_text(text.replace("nobody:x", "renamed:x"))
        assert said(node, "id -un") == "renamed\n"
        node.configure(populateEtcDynamically="1")
        assert said(node, "id -un") == "nobody\n"
        node.configure(populateEtcDynamically="1", allowLibcPwdCalls="0")
        assert said(node, "id -un; id -gn") == "nobody\nnogroup\n"
    finally:
        (node.directory / "etc/passwd").write_text(text)


def test_opt_udi_image_is_copied_and_site_resources_are_bound(node: Node) -> None:
    udi, resources = directory(node, "udiImage", tool="tool\n"), directory(node, "resources", gpu="gpu\n")
    node.configure(optUdiImage=str(udi), siteResources=str(resources))
    assert said(node, f"cat /opt/udiImage/tool {resources}/gpu") == "tool\ngpu\n"


def test_site_resources_that_a_node_lacks_are_an_empty_directory_until_they_come(node: Node) -> None:
    with tempfile.TemporaryDirectory(dir="/run") as run:  # containers do not have the host's /run
        resources = Path(run) / "deep" / "resources"
        node.configure(siteResources=str(resources))
        for _ in ("planned", "by the kept plan"):
            assert said(node, f"ls -A {resources} && echo there") == "there\n"
        assert not resources.exists()
        Path(run).chmod(0o755)
        resources.mkdir(parents=True)
        (resources / "gpu").write_text("gpu\n")
        assert said(node, f"cat {resources}/gpu") == "gpu\n"


def test_site_resources_that_would_have_to_be_made_in_a_host_directory_stop_no_start(node: Node) -> None:
    node.configure(siteResources=str(node.directory / "no/resources"))  # below /tmp, which is the host's
    assert said(node, "echo runs") == "runs\n"
    assert not (node.directory / "no").exists()


def test_a_local_directory_can_be_the_image_where_the_site_allows_it(node: Node) -> None:
    node.configure(allowLocalChroot="1")
    tree = directory(node, "unpacked")
    for name in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "etc"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    done = node.start(f"--image=local:{tree}", "/bin/busybox", "ls", "/")
    assert "bin" in done.stdout.split(), done.stderr
    assert node.start("--image=local:/", "/bin/sh", "-c", "exit 5").returncode == 5
    for path, why in (
        ("/root", "you may not read it"), ("/no/such", "No such file or directory"), ("/etc/passwd", "not a directory"),
    ):  # fmt: skip
        line = only_line(node.start(f"--image=local:{path}", "true"))
        assert line.startswith(f"shifter: image local:{path}: ")
        assert why in line
        assert line.endswith("name a directory that is there and yours to read")


def test_a_file_of_variables_that_is_too_long_is_refused_not_cut(node: Node) -> None:
    variables = node.directory / "long.env"
    variables.write_text("".join(f"V{number}={'x' * 1000}\n" for number in range(1100)))
    variables.chmod(0o644)
    line = only_line(node.start("--image=id:tiny", f"--env-file={variables}", "true"))
    assert "longer than 1 MiB" in line


def test_underlays_are_read_only_where_the_site_wants_it(node: Node) -> None:
    for value, options in (("1", "rw"), ("0", "ro")):
        node.configure(mountUdiRootWritable=value)
        line = said(node, "grep ' / ' /proc/mounts || cat /proc/mounts", "-V", "/tmp:/new/place").splitlines()[0]
        assert line.split()[2:4] == ["tmpfs", line.split()[3]]
        assert line.split()[3].startswith(options)


def test_ramfs_can_hold_what_a_start_makes(node: Node) -> None:
    node.configure(rootfsType="ramfs")
    assert " / ramfs " in said(node, "cat /proc/mounts", "-V", "/tmp:/new/place")


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
@requires("mkfs.erofs")
def test_images_in_each_format(node: Node, kind: str) -> None:
    tree = directory(node, f"tree-{kind}")
    for name in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "etc"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    node.pack(tree, f"format-{kind}", kind)
    done = node.start(f"--image=id:format-{kind}", "/bin/busybox", "cat", "/proc/mounts")
    assert f" / {kind} ro,nosuid,nodev" in done.stdout


@requires("mkfs.xfs")
def test_an_xfs_image(node: Node) -> None:
    file, place = node.directory / "images/big.xfs", nodes.public(node.directory / "xfs")
    subprocess.run(["truncate", "-s", "400M", str(file)], check=True)
    subprocess.run(["mkfs.xfs", "-q", str(file)], check=True)
    subprocess.run(["mount", "-o", "loop", str(file), str(place)], check=True)
    for name in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "etc"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (place / "bin/busybox").chmod(0o755)
    subprocess.run(["umount", str(place)], check=True)
    record = (node.directory / "images/tiny.json").read_text()
    (node.directory / "images/big.json").write_text(record.replace("tiny", "big").replace("squashfs", "xfs"))
    done = node.start("--image=id:big", "/bin/busybox", "cat", "/proc/mounts")
    assert " / xfs ro,nosuid,nodev" in done.stdout, done.stderr


def test_the_older_record_is_read_where_there_is_no_newer(node: Node) -> None:
    node.image("old")
    (node.directory / "images/old.json").unlink()
    (node.directory / "images/old.meta").write_text(
        "FORMAT: squashfs\nENTRY: ['/bin/echo', 'x y']\nCMD: ['z']\nWORKDIR: /usr\nUSERACL: 1,\nENV: PATH=/bin\nENV: A=B\n"
    )
    assert "no image id:old" in only_line(node.start("--image=id:old", "true"))
    assert node.start("--image=id:old", "--entrypoint", uid=1).stdout == "x y z\n"
    assert node.start("--image=id:old", "-w", "sh", "-c", "pwd; echo $A", uid=1).stdout == "/usr\nB\n"
    (node.directory / "images/old.meta").write_text("FORMAT: squashfs\nUSERACL: 1\nENV: A=x\nUSERACL: 65534\n")
    assert "USERACL stands twice" in only_line(node.start("--image=id:old", "true"))


def test_deprecated_settings_are_accepted_and_warned_of(node: Node) -> None:
    node.configure(autoLoadKernelModule="0", modprobePath="/sbin/modprobe")
    assert node.start("--image=id:tiny", "true").stderr == ""
    done = node.start("-v", "--image=id:tiny", "true")
    assert "autoLoadKernelModule has no effect: kernel modules are never loaded here" in done.stderr
    assert f"image id:tiny is tiny ({node.directory}/images/tiny.squashfs)" in done.stderr
    assert f"environment: made at {node.directory}/udiMount" in done.stderr
    assert done.returncode == 0


def test_an_mpi_jobs_socket_reaches_the_command_and_no_other_descriptor_does(node: Node) -> None:
    import socket

    ours, theirs = socket.socketpair()
    file = os.open("/etc/hosts", os.O_RDONLY)
    number = theirs.fileno()
    done = subprocess.run(
        [str(node.shifter), "--image=id:tiny", "sh", "-c", f"ls /proc/self/fd; echo hello >&{number}"],
        user=NOBODY, group=NOBODY, extra_groups=[], pass_fds=[number, file], cwd="/",
        env={"PMI_FD": str(number)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.close(file)
    assert ours.recv(100) == b"hello\n"
    assert str(file) not in done.stdout.split()


def test_gpus_of_a_made_up_vendor_reach_the_container_and_what_is_not_done_is_told(node: Node) -> None:
    driver = directory(node, "driver", lib="library\n", gpu0="zero\n", gpu1="one\n")
    devices = [
        {
            "name": str(number),
            "containerEdits": {
                "env": [f"MAKER_{number}=yes"],
                "mounts": [{"hostPath": f"{driver}/gpu{number}", "containerPath": f"/opt/maker/gpu{number}"}],
            },
        }
        for number in (0, 1)
    ]
    common = {
        "mounts": [{"hostPath": f"{driver}/lib", "containerPath": "/usr/lib/libmaker.so.1"}],
        "hooks": [{"hookName": "createContainer", "path": "/usr/bin/maker", "args": ["maker", "warm-up"]}],
    }
    specifications = directory(node, "cdi")
    (specifications / "maker.json").write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": "maker.example/gpu", "devices": devices, "containerEdits": common})
    )
    show = "cat /usr/lib/libmaker.so.1 /opt/maker/*; echo [$MAKER_0$MAKER_1] [$CUDA_VISIBLE_DEVICES]"
    node.configure(cdiPath=str(specifications), gpu="all")
    for _ in ("planned", "by the kept plan"):
        assert said(node, show, "--gpu=1", "--clearenv") == "library\none\n[yes] [1]\n"
        assert said(node, show, "--clearenv") == "library\nzero\none\n[yesyes] []\n"
        assert said(node, "test -e /opt/maker || echo none", "--gpu=none") == "none\n"
    done = node.start("--verbose", "--image=id:tiny", "true")
    (told,) = [line for line in done.stderr.splitlines() if "warm-up" in line]
    assert told.endswith("GPU: " + f"{specifications}/maker.json: hook maker warm-up is not run; no hook is")
    (specifications / "maker.json").unlink()
    assert "no GPU is described on this node" in only_line(node.start("--image=id:tiny", "true"))
