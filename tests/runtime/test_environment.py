"""The order in which a command's environment is made, as a table: each layer overrides all before it."""

import fnmatch

import pytest

from runtime import environment, plan
from runtime.reference import Reference
from runtime.refusal import StartRefused
from runtime.request import Request
from runtime.sidecar import ImageRecord
from runtime.udiroot import Module, Udiroot
from runtime.view import Node

CONF = Udiroot(path="/c", udi_mount="/u", loop_mount="/l", image_path="/i", system="s")
IMAGE = ImageRecord("abc", "/i/abc.squashfs")
REQUEST = Request(1, 1, Reference("id", "abc"), "docker:a:1")


class Files(Node):
    """A node whose files are given."""

    def __init__(self, text: str) -> None:
        super().__init__(1, 1)
        self.text = text

    def user_text(self, path: str) -> str:
        if not self.text:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.text


def apply(steps: list[plan.Step], host: dict[str, str]) -> dict[str, str]:
    """What the launcher does with the operations."""
    out = dict(host)
    for step in steps:
        match step:
            case plan.EnvClear():
                out = {name: out[name] for name in out if any(fnmatch.fnmatchcase(name, p) for p in step.keep)}
            case plan.EnvSet():
                out[step.name] = step.value
            case plan.EnvDefault():
                out.setdefault(step.name, step.value)
            case plan.EnvUnset():
                out = {name: value for name, value in out.items() if not fnmatch.fnmatchcase(name, step.pattern)}
            case plan.EnvPrepend():
                out[step.name] = ":".join(filter(None, [step.value, out.get(step.name, "")]))
            case plan.EnvAppend():
                out[step.name] = ":".join(filter(None, [out.get(step.name, ""), step.value]))
    return out


LAYERS = ["host", "image", "--env-file", "--env", "first module", "second module", "siteEnv"]


@pytest.mark.parametrize("last", range(len(LAYERS)), ids=LAYERS)
def test_each_layer_overrides_those_before(last: int) -> None:
    def value(layer: str) -> tuple[tuple[str, str], ...]:
        return (("V", layer),) if LAYERS.index(layer) <= last else ()

    steps = environment.steps(
        REQUEST.changed(environment=value("--env"), environment_file=("/f",) if last >= 2 else ()),
        CONF.changed(site_env=value("siteEnv")),
        IMAGE.changed(env=("V=image",) if last >= 1 else ()),
        [Module("a", site_env=value("first module")), Module("b", site_env=value("second module"))],
        Files("V=--env-file\n"),
    )
    assert apply(steps, {"V": "host"})["V"] == LAYERS[last]


def test_paths_grow_in_order_and_unset_comes_last() -> None:
    module = Module("m", site_env_prepend=(("P", "m1"),), site_env_append=(("P", "m2"),), site_env_unset=("GONE",))
    conf = CONF.changed(site_env_prepend=(("P", "s1"),), site_env_append=(("P", "s2"),), site_env_unset=("TOO",))
    request = REQUEST.changed(environment=(("P", "user"), ("GONE", "1"), ("TOO", "1")))
    found = apply(environment.steps(request, conf, IMAGE, [module], Files("")), {})
    assert found["P"] == "s1:m1:user:m2:s2"
    assert "GONE" not in found
    assert "TOO" not in found


def test_an_image_can_set_what_says_which_image_it_is() -> None:
    found = apply(environment.steps(REQUEST, CONF, IMAGE.changed(env=("SHIFTER_IMAGE=other",)), [], Files("")), {})
    assert found["SHIFTER_IMAGE"] == "other"
    assert found["SHIFTER_IMAGEREQUEST"] == "docker:a:1"


def test_a_path_is_there_when_nobody_set_one() -> None:
    assert apply(environment.steps(REQUEST, CONF, IMAGE, [], Files("")), {})["PATH"] == environment.PATH
    assert apply(environment.steps(REQUEST, CONF, IMAGE, [], Files("")), {"PATH": "/mine"})["PATH"] == "/mine"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB=2\n", {"A": "1", "B": "2"}), ("# no\n\n  A=1\n", {"A": "1"}), ("A=\n", {"A": ""}), ("A=b=c\n", {"A": "b=c"}),
        ('A="x y"\n', {"A": '"x y"'}), ("A=1\nA=2", {"A": "2"}), ("A= spaced \n", {"A": " spaced "}),
        ("\ufeffA=1\n", {"A": "1"}),
    ],
)  # fmt: skip
def test_files_of_variables(text: str, found: dict[str, str]) -> None:
    assert dict(environment.file_variables("/f", Files(text))) == found


@pytest.mark.parametrize("text", ["word\n", "=x\n", "A =1\n", "export A=1\n", "A\tB=1\n"])
def test_files_that_are_no_variables(text: str) -> None:
    with pytest.raises(StartRefused, match=r"--env-file /f: line 1: .*: write NAME=VALUE"):
        environment.file_variables("/f", Files(text))
