"""udiRoot.conf: its format, its types, and what is said of a mistake."""

import re

import pytest

from runtime.udiroot import KEYS, MODULE_KEYS, ConfigInvalid, Module, Udiroot, parse

LEAST = "udiMount=/u\nloopMount=/l\nimagePath=/i\nsystem=s\n"


def read(text: str) -> Udiroot:
    return parse(LEAST + text, "/etc/udiRoot.conf")


def test_the_least_and_its_defaults() -> None:
    conf = read("")
    assert (conf.udi_mount, conf.loop_mount, conf.image_path, conf.system) == ("/u", "/l", "/i", "s")
    assert conf == Udiroot(path="/etc/udiRoot.conf", udi_mount="/u", loop_mount="/l", image_path="/i", system="s")


@pytest.mark.parametrize("missing", ["udiMount", "loopMount", "imagePath", "system"])
def test_what_is_required_is_asked_for_by_name(missing: str) -> None:
    text = "".join(line + "\n" for line in LEAST.splitlines() if not line.startswith(missing))
    with pytest.raises(ConfigInvalid, match=f"{missing} is missing"):
        parse(text, "/etc/udiRoot.conf")


def test_comments_continued_lines_spaces_and_repeated_lists() -> None:
    conf = read(
        "# comment\n\nsiteFs = /home:/home;\\\n   /global:/g/:rec:slave\\\n\nsiteFs=/x:/y\nsiteEnv=A=1 B=x=y\n etcPath = /e/ \n"
    )
    assert [str(volume) for volume in conf.site_fs] == ["/home:/home", "/global:/g:rec:slave", "/x:/y"]
    assert conf.site_env == (("A", "1"), ("B", "x=y"))
    assert conf.etc_path == "/e"


@pytest.mark.parametrize("between", ["; ", " ", ";\\\n   ", "\\\n", " ; "])
def test_site_fs_is_separated_by_semicolons_or_by_spaces(between: str) -> None:
    conf = read(f"siteFs=/home:/home{between}/global:/g:rec\nmodule_m_siteFs=/a:/b{between}/c:/d\n")
    assert [str(volume) for volume in conf.site_fs] == ["/home:/home", "/global:/g:rec"]
    assert [str(volume) for volume in conf.modules[0].site_fs] == ["/a:/b", "/c:/d"]


@pytest.mark.parametrize(
    ("udi", "loop", "said"),
    [
        ("/", "/l", "udiMount: / is the system's own"),
        ("//", "/l", "udiMount: / is the system's own"),
        ("/u/../usr/", "/l", "udiMount: /usr is the system's own"),
        ("/u", "/var", "loopMount: /var is the system's own"),
        ("/u", "/u/.", "udiMount /u and loopMount /u: neither may be in the other"),
        ("/u", "/u/l", "neither may be in the other"),
        ("/l/u", "/l", "neither may be in the other"),
    ],
)
def test_what_is_mounted_over_and_cleared_is_no_directory_of_the_systems(udi: str, loop: str, said: str) -> None:
    text = f"udiMount={udi}\nloopMount={loop}\nimagePath=/i\nsystem=s\n"
    with pytest.raises(ConfigInvalid, match=re.escape(said)):
        parse(text, "/etc/udiRoot.conf")


def test_names_that_begin_alike_are_two_places() -> None:
    conf = parse("udiMount=/var/udi\nloopMount=/var/udiLoop\nimagePath=/i\nsystem=s\n", "/etc/udiRoot.conf")
    assert (conf.udi_mount, conf.loop_mount) == ("/var/udi", "/var/udiLoop")


def test_a_site_may_write_what_the_documentation_shows() -> None:
    conf = read(
        "siteEnvAppend=PATH=/opt/udiImage/bin\nsiteEnvUnset=LOADEDMODULES _LMFILES_\nimageGateway=http://a:5000 http://b:5000\n"
        "module_mpich_copyPath = /usr/lib/shifter/opt/mpich\nmodule_mpich_siteEnvPrepend = LD_LIBRARY_PATH=/opt/lib64\n"
        "module_mpich_conflict = cvmfs other\nmodule_cvmfs_siteFs = /cvmfs_nfs:/cvmfs\n"
        "module_cvmfs_enabled=0\ndefaultModules = mpich\n"
    )
    assert conf.image_gateway == ("http://a:5000", "http://b:5000")
    mpich = conf.module("mpich")
    assert mpich == Module(
        "mpich", copy_path="/usr/lib/shifter/opt/mpich", site_env_prepend=(("LD_LIBRARY_PATH", "/opt/lib64"),),
        conflict=("cvmfs", "other"),
    )  # fmt: skip
    assert conf.module("cvmfs") is not None
    assert not conf.modules[0].enabled


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("siteFS=/a:/b", "line 5: unknown key 'siteFS': did you mean 'siteFs'?"),
        ("udimount=/a", "did you mean 'udiMount'?"),
        ("zzz=1", "unknown key 'zzz': see udiRoot.conf.example"),
        ("module_x_siteEnw=A=1", "unknown module setting 'siteEnw': did you mean 'siteEnv'?"),
        ("just words", "'just words' is not KEY=VALUE"),
        ("udiMount=relative", "udiMount: 'relative' is not an absolute path"),
        ("maxGroupCount=many", "maxGroupCount: 'many' is not a whole number"),
        ("gatewayTimeout=-1", "gatewayTimeout: '-1' is not a number of seconds"),
        ("allowLocalChroot=perhaps", "allowLocalChroot: 'perhaps': use 0 or 1"),
        ("rootfsType=ext4", "rootfsType: 'ext4': use one of tmpfs ramfs"),
        ("mountPropagationStyle=shared", "use one of slave private"),
        ("siteFs=/a", "siteFs: volume '/a' has no target"),
        ("siteEnv=A", "siteEnv: 'A' is not NAME=VALUE"),
        ("perNodeCacheSizeLimit=large", "perNodeCacheSizeLimit: size 'large'"),
        ("defaultModules=absent", "defaultModules names 'absent', for which there is no module_absent_ setting"),
    ],
)
def test_a_mistake_is_named_with_its_line(line: str, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=re.escape(said)) as error:
        read(line + "\n")
    assert str(error.value).startswith("/etc/udiRoot.conf: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", [key.name for key in KEYS if key.deprecated])
def test_deprecated_keys_are_accepted_with_a_warning(key: str) -> None:
    (warning,) = read(f"{key}=1\n").warnings
    assert f"{key} has no effect" in warning


def test_every_key_of_the_documentation_is_known() -> None:
    documented = """
        udiMount loopMount imagePath udiRootPath etcPath rootfsType modprobePath insmodPath cpPath
        mvPath chmodPath ddPath mkfsXfsPath perNodeCachePath perNodeCacheSizeLimit
        perNodeCacheAllowedFsType usersToImport sitePreMountHook sitePostMountHook optUdiImage
        allowLocalChroot allowLibcPwdCalls populateEtcDynamically mountPropagationStyle
        mountUdiRootWritable maxGroupCount gatewayTimeout siteFs siteEnv siteEnvAppend
        siteEnvPrepend siteEnvUnset imageGateway batchType system defaultImageType defaultModules
        siteResources autoLoadKernelModule kmodBasePath kmodCacheFile optionalSshdAsRoot
    """
    assert set(documented.split()) <= {key.name for key in KEYS}
    settings = "userhook roothook siteEnv siteEnvPrepend siteEnvAppend siteEnvUnset conflict siteFs copyPath enabled"
    assert set(settings.split()) == {key.name for key in MODULE_KEYS}


def test_the_table_and_the_types_agree() -> None:
    fields = set(Udiroot.FIELDS) - {"path", "modules", "warnings"}
    assert fields == {key.field for key in KEYS if not key.deprecated}
    for key in KEYS:
        assert key.doc
        if not key.required and not key.deprecated:
            assert getattr(Udiroot, key.field) == key.default, key.name
    for key in MODULE_KEYS:
        assert getattr(Module, key.field) == key.default or key.kind in (
            "envs",
            "volumes",
            "names",
            "path",
            "program",
        ), key.name
