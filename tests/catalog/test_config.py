"""imagemanager.json: old files are taken as they are, and an error says what to write."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from catalog.config import load, parse
from catalog.config_reader import ConfigError

# The sample of the documentation's chapter on deployment, local mode.
LOCAL: dict[str, Any] = {
    "DefaultImageLocation": "registry-1.docker.io",
    "DefaultImageFormat": "squashfs",
    "PullUpdateTimeout": 300,
    "ImageExpirationTimeout": "90:00:00:00",
    "MongoDBURI": "mongodb://localhost/",
    "MongoDB": "Shifter",
    "CacheDirectory": "/images/cache/",
    "ExpandDirectory": "/images/expand/",
    "Locations": {"registry-1.docker.io": {"remotetype": "dockerv2", "authentication": "http"}},
    "Platforms": {
        "mycluster": {
            "mungeSocketPath": "/var/run/munge/munge.socket.2",
            "accesstype": "local",
            "admins": ["root"],
            "local": {"imageDir": "/images"},
        }
    },
}
# Remote mode, and keys seen at sites.
REMOTE_PLATFORM = {
    "mungeSocketPath": "/var/run/munge/munge.socket.2",
    "accesstype": "remote",
    "admins": ["root"],
    "host": ["mycluster01"],
    "ssh": {
        "username": "shifter",
        "key": "/home/shifter/.ssh/ssh.key",
        "imageDir": "/images",
        "sshCmdOptions": ["-o", "StrictHostKeyChecking=yes"],
        "scpCmdOptions": ["-l", "1000"],
    },
    "use_external": False,
    "policy_file": "/etc/containers/policy.json",
    "usergroupService": "http://groups/",
}


def changed(**keys: Any) -> dict[str, Any]:
    return {**LOCAL, **keys}


def test_the_documented_local_file_is_taken_as_it_is() -> None:
    configuration = parse(LOCAL)
    assert configuration.warnings == ()
    assert configuration.image_expiration == timedelta(days=90)
    assert configuration.platforms["mycluster"].image_dir == Path("/images")
    assert configuration.locations["registry-1.docker.io"].url == "https://registry-1.docker.io"


def test_the_documented_remote_file_is_taken_as_it_is() -> None:
    configuration = parse(changed(Platforms={"mycluster": REMOTE_PLATFORM}, WorkerThreads=8, Metrics=True))
    ssh = configuration.platforms["mycluster"].ssh
    assert configuration.warnings == ()
    assert ssh is not None
    assert (ssh.hosts, ssh.username, ssh.port) == (("mycluster01",), "shifter", 22)


def test_a_lone_mongodb_uri_means_that_the_events_go_to_mongodb() -> None:
    store = parse(LOCAL).store
    assert (store.kind, store.uri, store.database) == ("mongodb", "mongodb://localhost/", "Shifter")


def test_without_any_store_key_the_events_are_in_sqlite_below_the_state_directory() -> None:
    data = changed(StateDirectory="/srv/gateway")
    del data["MongoDBURI"], data["MongoDB"]
    assert parse(data).store.uri == "/srv/gateway/events.sqlite"


def test_a_store_uri_with_a_password_is_not_in_the_configuration_s_repr() -> None:
    data = changed(EventStore={"kind": "postgresql", "uri": "postgresql://gw:hunter2@db/events"})
    assert "hunter2" not in repr(parse(data))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"PullUpdateTimeout": "soon"}, "PullUpdateTimeout is 'soon'; allowed: a number"),
        ({"ImageExpirationTimeout": "a:b"}, "ImageExpirationTimeout is 'a:b'; allowed: days:hours:minutes:seconds"),
        ({"CacheDirectory": "cache"}, "CacheDirectory is 'cache'; allowed: an absolute path"),
        ({"CacheDirectory": None}, "CacheDirectory is missing"),
        ({"DefaultImageFormat": "ext4"}, "DefaultImageFormat is 'ext4'; allowed: erofs, squashfs"),
        ({"DefaultImageLocation": "nowhere"}, "DefaultImageLocation is 'nowhere'; allowed: one of Locations"),
        ({"Locations": {"x": {"url": "ftp://x"}}, "DefaultImageLocation": "x"}, "Locations.x.url is 'ftp://x'"),
        ({"Locations": {"x": {"authMethod": "ntlm"}}, "DefaultImageLocation": "x"}, "allowed: basic, token"),
        ({"Platforms": {}}, "Platforms is {}; allowed: at least one system"),
        ({"Platforms": {"m": {"accesstype": "carrier pigeon"}}}, "Platforms.m.accesstype is 'carrier pigeon'"),
        ({"WorkerThreads": 0}, "WorkerThreads is 0; allowed: a number from 1"),
        ({"EventStore": "oracle"}, "EventStore is 'oracle'; allowed: mongodb, postgresql, sqlite"),
        ({"Metrics": "perhaps"}, "Metrics is 'perhaps'; allowed: true or false"),
    ],
)
def test_an_error_names_the_key_the_value_and_what_is_allowed(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(**keys))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        ({"PullUpdateTimout": 5}, "unknown key PullUpdateTimout is ignored; did you mean PullUpdateTimeout?"),
        ({"importusers": "all"}, "unknown key importusers is ignored; did you mean ImportUsers?"),
        ({"Zzz": 1}, "unknown key Zzz is ignored"),
    ],
)
def test_an_unknown_key_is_a_warning_with_the_nearest_known_one(keys: dict[str, Any], warning: str) -> None:
    assert parse(changed(**keys)).warnings == (warning,)


def test_unknown_keys_inside_a_platform_are_named_with_their_place() -> None:
    platform = {**LOCAL["Platforms"]["mycluster"], "admin": ["x"]}
    assert parse(changed(Platforms={"mycluster": platform})).warnings == (
        "unknown key Platforms.mycluster.admin is ignored; did you mean admins?",
    )


def test_admins_written_as_one_text_are_names_and_no_substrings() -> None:
    platform = {**LOCAL["Platforms"]["mycluster"], "admins": "root, canon"}
    assert parse(changed(Platforms={"m": platform})).platforms["m"].admins == ("root", "canon")


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON: line 1"), ("[]", "must be an object")])
def test_a_file_that_is_no_json_object_is_refused_with_the_place(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "imagemanager.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.json: No such file"):
        load(tmp_path / "nowhere.json")


def test_the_example_file_of_the_distribution_is_valid() -> None:
    example = Path(__file__).parents[2] / "etc" / "imagemanager.json.example"
    assert parse(json.loads(example.read_text())).warnings == ()


@pytest.mark.parametrize(("kind", "scheme"), [("mongodb", "mongodb"), ("postgresql", "postgresql")])
def test_the_address_of_a_store_may_stand_in_a_file_of_its_own(kind: str, scheme: str, tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_text(f"{scheme}://shifter:secret@db/\n")
    made = parse(changed(EventStore={"kind": kind, "uriFile": str(file)}))
    assert (made.store.kind, made.store.uri, made.warnings) == (kind, f"{scheme}://shifter:secret@db/", ())
    file.write_text("secret")
    with pytest.raises(ConfigError, match=rf"^EventStore.uriFile does not begin with {scheme}://") as refused:
        parse(changed(EventStore={"kind": kind, "uriFile": str(file)}))
    assert "secret" not in str(refused.value)
    file.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        parse(changed(EventStore={"kind": kind, "uriFile": str(file)}))


def test_words_for_the_converter_that_it_does_not_know_are_said_at_the_start() -> None:
    made = parse(changed(ConverterOptions={"squashfs": "-c zstd", "tarball": "-x"}))
    assert made.warnings[0].startswith("ConverterOptions.tarball has no effect; formats are erofs, squashfs")
    assert made.warnings[1].startswith("ConverterOptions: '-c zstd' is not understood; known are -comp ")
    assert made.warnings[1].endswith("; every pull fails until that is put right")
    assert parse(changed(ConverterOptions={"squashfs": ["-comp", "gzip"]})).warnings == ()
