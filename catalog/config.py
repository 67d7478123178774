"""imagemanager.json, parsed once into types.

Accepts the files of existing sites as they are; the keys that this gateway adds are all optional
(docs/administration.md lists every key). Promises that a `Configuration` is valid: whoever holds one checks nothing
again. An error is one line that names the key, its value and what is allowed; an unknown key is a warning in
`Configuration.warnings`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from catalog.config_pull import PullSettings, SignaturePolicy, location_pull, pull_settings
from catalog.config_reader import ConfigError, Section
from catalog.conversion_options import ConversionOptions, OptionsInvalid
from catalog.reference import DOCKER_HUB

FORMATS = ("squashfs", "erofs")
STORE_KINDS = ("sqlite", "postgresql", "mongodb")


@dataclass(frozen=True)
class Location:
    """A registry. `url` is scheme://host[:port] without a path; `name` is the prefix that users may write."""

    name: str
    url: str
    remotetype: str
    sslcacert: Path | None
    auth_method: Literal["token", "basic"]
    proxy: str | None = None
    mirrors: tuple[str, ...] = ()
    connections: int = 4
    signature_policy: SignaturePolicy = "none"
    signature_keys: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Ssh:
    """How to reach a platform whose image directory is on another machine (accesstype remote)."""

    hosts: tuple[str, ...]
    username: str
    key: Path | None
    port: int
    ssh_options: tuple[str, ...]
    scp_options: tuple[str, ...]


@dataclass(frozen=True)
class Platform:
    """One cluster: who speaks for it (munge), who administers it, where its images go, what it can run.

    image_dir is a local path for accesstype local, a path on the ssh hosts for remote. arch is the OCI architecture
    (`amd64`), variant its variant (`v8`) or None.
    """

    name: str
    munge_socket: Path | None
    accesstype: Literal["local", "remote"]
    admins: tuple[str, ...]
    image_dir: Path
    arch: str
    variant: str | None
    format: str
    ssh: Ssh | None = None
    usergroup_service: str | None = None


@dataclass(frozen=True)
class EventStoreChoice:
    """Where the event log lives. uri is a file path for sqlite, a connection URI otherwise (it may hold a password)."""

    kind: Literal["sqlite", "postgresql", "mongodb"]
    uri: str
    database: str

    def __repr__(self) -> str:
        return f"EventStoreChoice({self.kind})"  # the URI may carry a password, and a repr ends in logs


@dataclass(frozen=True)
class Limits:
    """What one request, one user, or one address without a credential may take. bytes, seconds, requests a second; a rate
    of 0 is no limit.
    """

    request_bytes: int = 64 * 1024
    header_bytes: int = 64 * 1024
    request_seconds: float = 30.0
    requests_per_second: float = 1000.0
    requests_burst: float = 10000.0
    anonymous_per_second: float = 100.0
    anonymous_burst: float = 1000.0
    connections: int = 1000


@dataclass(frozen=True)
class Configuration:
    """imagemanager.json. Directories are absolute; they are created when the gateway starts."""

    listen_host: str
    listen_port: int
    request_threads: int
    state_directory: Path
    cache_directory: Path
    expand_directory: Path
    worker_threads: int
    log_level: str
    default_location: str
    default_format: str
    pull_update_timeout: float  # seconds for which a pulled tag counts as fresh
    image_expiration: timedelta
    image_lease: timedelta  # for which a job's look-up keeps an image's file, whatever becomes of its tags
    import_users: tuple[str, ...] | None  # None: import is off; ("all",): everybody
    metrics: bool
    converter_options: Mapping[str, tuple[str, ...]]
    examiner: Path | None
    lustre_replication: int | None
    lustre_stripes: int | None
    lease_seconds: float
    store: EventStoreChoice
    limits: Limits
    pull: PullSettings
    locations: Mapping[str, Location]
    platforms: Mapping[str, Platform]
    warnings: tuple[str, ...] = ()


def load(path: Path) -> Configuration:
    """Reads `path`. Raises ConfigError (also when the file is missing, unreadable or no JSON)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    try:
        return parse(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(data: object) -> Configuration:
    """The configuration in the JSON value `data`. Raises ConfigError."""
    top = Section(data, "")
    warnings: list[str] = []
    default_format = top.choice("DefaultImageFormat", FORMATS, "squashfs")
    locations = {name: _location(name, part, warnings) for name, part in top.sections("Locations").items()}
    if not locations:
        raise top.bad("Locations", "at least one registry")
    default_location = top.text("DefaultImageLocation", next(iter(locations)))
    if default_location not in locations:
        alias = [name for name in locations if name in DOCKER_HUB and default_location in DOCKER_HUB]
        if not alias:
            raise top.bad("DefaultImageLocation", "one of Locations: " + ", ".join(sorted(locations)))
        default_location = alias[0]
    platforms = {
        name: _platform(name, part, default_format, warnings) for name, part in top.sections("Platforms").items()
    }
    if not platforms:
        raise top.bad("Platforms", "at least one system")
    state = top.path("StateDirectory", Path("/var/lib/shifter/gateway"))
    listen_host, listen_port = top.text("ListenHost", "0.0.0.0"), top.whole("ListenPort", 5000, high=65535)  # noqa: S104 — nodes must reach it
    configuration = Configuration(
        listen_host=listen_host,
        listen_port=listen_port,
        request_threads=top.whole("RequestThreads", 16, low=1, high=512),
        state_directory=state,
        cache_directory=top.path("CacheDirectory"),
        expand_directory=top.path("ExpandDirectory"),
        worker_threads=top.whole("WorkerThreads", 4, low=1, high=256),
        log_level=top.choice("LogLevel", _LEVELS, "INFO").upper(),
        default_location=default_location,
        default_format=default_format,
        pull_update_timeout=top.number("PullUpdateTimeout", 300),
        image_expiration=top.duration("ImageExpirationTimeout", timedelta(days=90)),
        image_lease=top.duration("ImageLeaseTime", timedelta(days=7)),
        import_users=_import_users(top),
        metrics=top.flag("Metrics", False),
        converter_options=_converter_options(top, warnings),
        examiner=top.optional_path("examiner"),
        lustre_replication=top.whole("DefaultLustreReplication", 0) or None,
        lustre_stripes=top.whole("DefaultOstCount", 0) or None,
        lease_seconds=top.number("LeaseSeconds", 15, low=1, high=3600),
        store=_store(top, state, warnings),
        limits=_limits(top, warnings),
        pull=pull_settings(top, warnings),
        locations=locations,
        platforms=platforms,
    )
    top.choice("Authentication", ("munge",), "munge")
    top.ignored("Broker", "ManagerPort", "gatewayHost", "MaxWorkers", "WorkerTimeout")
    return Configuration(**{**configuration.__dict__, "warnings": (*top.unknown(), *warnings)})


_LEVELS = (
    "DEBUG",
    "INFO",
    "WARN",
    "WARNING",
    "ERROR",
    "CRITICAL",
    "debug",
    "info",
    "warn",
    "warning",
    "error",
    "critical",
)


def _location(name: str, part: Section, warnings: list[str]) -> Location:
    host = "registry-1.docker.io" if name in DOCKER_HUB else name
    url = part.text("url", f"https://{host}")
    if "://" not in url:
        url = f"https://{url}"
    split = urlsplit(url)
    try:
        bad = split.scheme not in {"http", "https"} or not split.hostname or split.path.rstrip("/") not in {"", "/v2"}
        port = f":{split.port}" if split.port else ""
    except ValueError:
        bad, port = True, ""
    if bad:
        raise part.bad("url", "http:// or https://, a host and a port, without a path")
    method = part.choice("authMethod", ("token", "basic"), "token")
    part.ignored("authentication")  # `http` in every file seen; which scheme is used, the registry's answer says
    host = f"[{split.hostname}]" if ":" in (split.hostname or "") else str(split.hostname)
    location = Location(
        name=name,
        url=f"{split.scheme}://{host}{port}",
        remotetype=part.choice("remotetype", ("dockerv2",), "dockerv2"),
        sslcacert=part.optional_path("sslcacert"),
        auth_method="basic" if method == "basic" else "token",
        proxy=part.optional_text("proxy"),
        **vars(location_pull(part)),
    )
    warnings += part.unknown()
    return location


def _platform(name: str, part: Section, default_format: str, warnings: list[str]) -> Platform:
    remote = part.choice("accesstype", ("local", "remote"), "local") == "remote"
    place = part.section("ssh" if remote else "local")
    part.ignored("local", "ssh", "use_external", "policy_file")
    image_dir = place.path("imageDir")
    platform = Platform(
        name=name,
        munge_socket=part.optional_path("mungeSocketPath"),
        accesstype="remote" if remote else "local",
        admins=part.names("admins"),
        image_dir=image_dir,
        arch=part.text("arch", "amd64"),
        variant=part.optional_text("variant"),
        format=part.choice("format", FORMATS, default_format),
        ssh=_ssh(part, place) if remote else None,
        usergroup_service=part.optional_text("usergroupService"),
    )
    warnings += place.unknown() + part.unknown()
    return platform


def _ssh(part: Section, place: Section) -> Ssh:
    hosts = part.names("host")
    if not hosts:
        raise part.bad("host", "a list of machines to copy images to")
    return Ssh(
        hosts=hosts,
        username=place.text("username"),
        key=place.optional_path("key"),
        port=place.whole("port", 22, low=1, high=65535),
        ssh_options=place.names("sshCmdOptions"),
        scp_options=place.names("scpCmdOptions"),
    )


def _import_users(top: Section) -> tuple[str, ...] | None:
    users = top.names("ImportUsers")
    return None if not users or users == ("none",) else users


def _converter_options(top: Section, warnings: list[str]) -> Mapping[str, tuple[str, ...]]:
    if not top.has("ConverterOptions"):
        return {}
    value = top.get("ConverterOptions")
    if not isinstance(value, dict):
        raise top.bad("ConverterOptions", 'an object of formats, such as {"squashfs": ["-comp", "zstd"]}')
    options: dict[str, tuple[str, ...]] = {}
    for form, given in value.items():
        words = given.split() if isinstance(given, str) else given
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"ConverterOptions.{form} is {given!r}; allowed: a text or a list of texts")
        options[form] = tuple(words)
        if form not in FORMATS:
            warnings.append(f"ConverterOptions.{form} has no effect; formats are {', '.join(sorted(FORMATS))}")
    try:
        ConversionOptions(arguments=options.get("squashfs", ())).squashfs()
    except OptionsInvalid as error:
        warnings.append(f"{error}; every pull fails until that is put right")
    return options


def _store(top: Section, state: Path, warnings: list[str]) -> EventStoreChoice:
    if isinstance(top.get("EventStore"), str):
        kind = top.choice("EventStore", STORE_KINDS, "sqlite")
        part = Section({"kind": kind}, "EventStore")
    elif top.has("EventStore"):
        part = top.section("EventStore")
        kind = part.choice("kind", STORE_KINDS, "sqlite")
    else:
        part = Section({}, "EventStore")
        kind = "mongodb" if top.has("MongoDBURI") else "sqlite"
    top.ignored("MongoDBURI", "MongoDB")
    if kind == "sqlite":
        choice = EventStoreChoice("sqlite", str(part.path("path", state / "events.sqlite")), "")
    elif kind == "postgresql":
        choice = EventStoreChoice(
            "postgresql", _uri(part, "postgresql://", "postgres://"), part.text("schema", "public")
        )
    else:
        given = top.optional_text("MongoDBURI")
        uri = (
            given
            if given and not part.has("uri") and not part.has("uriFile")
            else _uri(part, "mongodb://", "mongodb+srv://")
        )
        database = part.text("database", top.text("MongoDB", "Shifter"))
        choice = EventStoreChoice("mongodb", uri, database)
    warnings += part.unknown()
    return choice


def _uri(part: Section, *schemes: str) -> str:
    if not part.has("uri") and part.has("uriFile"):
        # Keeps a password out of a configuration file that others may read.
        key, path = "uriFile", part.path("uriFile")
        try:
            uri = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"{part.name('uriFile')}: cannot read {path}: {reason}") from error
    else:
        key, uri = "uri", part.text("uri")
    if not uri.startswith(schemes):  # never shown: it may hold a password
        raise ConfigError(f"{part.name(key)} does not begin with {schemes[0]}; allowed: {schemes[0]}user@host/database")
    return uri


def _limits(top: Section, warnings: list[str]) -> Limits:
    if not top.has("Limits"):
        return Limits()
    part, default = top.section("Limits"), Limits()
    limits = Limits(
        request_bytes=part.whole("RequestBytes", default.request_bytes, low=1024),
        header_bytes=part.whole("HeaderBytes", default.header_bytes, low=1024),
        request_seconds=part.number("RequestSeconds", default.request_seconds, low=0.1),
        requests_per_second=part.number("RequestsPerSecond", default.requests_per_second),
        requests_burst=part.number("RequestsBurst", default.requests_burst, low=1),
        anonymous_per_second=part.number("AnonymousPerSecond", default.anonymous_per_second),
        anonymous_burst=part.number("AnonymousBurst", default.anonymous_burst, low=1),
        connections=part.whole("Connections", default.connections, low=1),
    )
    warnings += part.unknown()
    return limits
