"""What a job asks for, from submission to node: accepted once, written as variables, and never believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.udiroot import Udiroot, parse
from wlm.failure import UserMistake
from wlm.prolog import asked_for
from wlm.request import JobRequest, from_variables, parse_modules, parse_user_volumes, to_variables

ID = "3f" * 32


def conf(extra: str = "") -> Udiroot:
    required = "udiMount=/var/udiMount\nloopMount=/var/loopMount\nimagePath=/images\nsystem=test\n"
    return parse(required + extra, "udiRoot.conf")


def spank(**variables: str) -> dict[str, str]:
    return {f"SPANK_SHIFTER_{name}": value for name, value in variables.items()}


def test_a_request_comes_back_from_its_variables() -> None:
    modules = "module_a_siteEnv=A=1\nmodule_b_siteEnv=B=1\n"
    for request in (
        JobRequest("id", ID, "docker:x:1"),
        from_variables(spank(IMAGE=ID, IMAGETYPE="id", VOLUME="/a:/mnt;/b:/c:ro", MODULE="b,a"), conf(modules)),
        JobRequest("id", ID, "docker:x:1", modules=()),
    ):
        carried = {f"SPANK_{name}": value for name, value in to_variables(request).items()}
        assert from_variables(carried, conf(modules)) == request


def test_no_modules_is_not_the_same_as_the_default_ones() -> None:
    assert from_variables(spank(IMAGE=ID, IMAGETYPE="id"), conf()).modules is None
    assert from_variables(spank(IMAGE=ID, IMAGETYPE="id", MODULE="none"), conf()).modules == ()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (spank(IMAGE="abc", IMAGETYPE="id"), "'abc' is no image identifier"),
        (spank(IMAGE=ID.upper(), IMAGETYPE="id"), "is no image identifier"),
        (spank(IMAGE=f"../{ID[3:]}", IMAGETYPE="id"), "is no image identifier"),
        (spank(IMAGE=ID, IMAGETYPE="docker"), "image type 'docker' cannot be set up on a node"),
        (spank(IMAGE=ID), "image type ''"),
        (spank(IMAGE="/", IMAGETYPE="local"), "allowLocalChroot is not set"),
        (spank(IMAGE=ID, IMAGETYPE="id", VOLUME="/a:/etc/x"), "/etc is the system's"),
        (spank(IMAGE=ID, IMAGETYPE="id", VOLUME="/a:/b:rec"), "for the site"),
        (spank(IMAGE=ID, IMAGETYPE="id", VOLUME="/a/../b:/c"), "has '..'"),
        (spank(IMAGE=ID, IMAGETYPE="id", VOLUME="/a:/b\n/c:/d"), "SHIFTER_VOLUME holds a control character"),
        (spank(IMAGE=ID, IMAGETYPE="id", VOLUME="/a:/" + "x" * 70_000), "longer than 65536"),
        (spank(IMAGE=ID, IMAGETYPE="id", MODULE="nosuch"), "no module 'nosuch' here: this site has: none"),
        (spank(IMAGE=ID, IMAGETYPE="id", CCM="1"), "use --ccm"),
        (spank(IMAGE=ID, IMAGETYPE="id", IMAGEREQUEST="\x1b[2J"), "SHIFTER_IMAGEREQUEST holds a control character"),
    ],
)
def test_what_no_submission_would_have_let_through_is_refused_by_name(variables: dict[str, str], reason: str) -> None:
    with pytest.raises(UserMistake) as refused:
        from_variables(variables, conf())
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


NAMES = ("IMAGE", "IMAGETYPE", "IMAGEREQUEST", "VOLUME", "MODULE", "CCM")
TEXTS = st.text() | st.sampled_from(
    [ID, "id", "local", "/", "1", "none", "a,b", "/a:/b;/c:/d:ro", "/a:/b:perNodeCache=size=1G"]
)


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS))
def test_any_text_is_a_request_that_comes_back_the_same_or_the_users_mistake_in_one_line(texts: dict[str, str]) -> None:
    site = conf("allowLocalChroot=1\nmodule_a_siteEnv=A=1\nmodule_b_siteEnv=B=1\n")
    try:
        request = from_variables(spank(**texts), site)
    except UserMistake as error:
        assert len(str(error).splitlines()) == 1
        return
    carried = {f"SPANK_{name}": value for name, value in to_variables(request).items()}
    assert all(value.isprintable() for value in carried.values())
    assert from_variables(carried, site) == request


@pytest.mark.parametrize(
    ("reason", "users"),
    [
        ("cannot make a perNodeCache file: /var/cache: File too large", True),
        ("cannot mount /gone at /mnt: No such file or directory", True),
        ("cannot mount /site at /scratch: No such file or directory", False),
        ("cannot make a file of the container: /var/hostsfile: Is a directory", True),
        ("cannot make a file of the container: /var/hostsfile: No space left on device", False),
        ("cannot open a directory of the container: /var: Too many levels of symbolic links", True),
        ("cannot open a directory of the container: /var: Input/output error", False),
        ("cannot write in the container: /tmp/x: it is not the start's own file system", True),
        ("cannot copy into the container: /opt/udiImage/sshd: No such file or directory", False),
        ("cannot attach a loop device: No such file or directory", False),
    ],
)
def test_what_the_launcher_cannot_do_is_the_users_fault_where_another_job_would_not_meet_it(
    reason: str, users: bool
) -> None:
    request = JobRequest("id", ID, volumes=parse_user_volumes("/gone:/mnt;/tmp:/c:perNodeCache=size=1G"))
    assert asked_for(reason, request) is users
    if "perNodeCache" in reason:
        assert not asked_for(reason, JobRequest("id", ID))


def test_local_images_are_for_sites_that_allow_them_and_absolute() -> None:
    allowed = conf("allowLocalChroot=1\n")
    assert from_variables(spank(IMAGE="/opt/tree", IMAGETYPE="local"), allowed).identifier == "/opt/tree"
    assert from_variables(spank(IMAGE="/", IMAGETYPE="local", CCM="1"), allowed).ccm
    for path in ("opt", "/opt/../root"):
        with pytest.raises(UserMistake, match="not an absolute path without"):
            from_variables(spank(IMAGE=path, IMAGETYPE="local"), allowed)


def test_modules_that_exclude_each_other_are_named() -> None:
    site = conf(
        "module_a_siteEnv=A=1\nmodule_b_siteEnv=B=1\nmodule_b_conflict=a\nmodule_c_siteEnv=C=1\nmodule_c_enabled=0\n"
    )
    assert parse_modules("a", site) == ("a",)
    with pytest.raises(UserMistake, match="modules b and a exclude each other"):
        parse_modules("a,b", site)
    with pytest.raises(UserMistake, match="no module 'c' here: this site has: a b"):
        parse_modules("c", site)
