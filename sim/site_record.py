"""What a site remembers between the commands that bring it up, ask for it and take it down: `D/run/site.json`.

The record is written after each daemon that starts, before the next one does, so that a start that is cut off at any point
can be undone. Ports stay in it after `down`: the site comes up on the same ones when they are free.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sim.daemon import Daemon
from sim.process import Process

VERSION = 1


@dataclass(frozen=True)
class Record:
    """A site's name, ports, sockets, further registries (name -> URL), node count, and what was started, in order."""

    name: str
    registry_port: int
    gateway_port: int
    munge_socket: Path
    nodes: int = 0
    locations: Mapping[str, str] = field(default_factory=dict)
    daemons: tuple[Daemon, ...] = ()


def save(record: Record, file: Path) -> None:
    """Replace the file, whole or not at all."""
    document = {
        "version": VERSION,
        "name": record.name,
        "registry_port": record.registry_port,
        "gateway_port": record.gateway_port,
        "munge_socket": str(record.munge_socket),
        "nodes": record.nodes,
        "locations": dict(record.locations),
        "daemons": [
            {
                "name": daemon.name,
                "pid": daemon.process.pid,
                "ticks": daemon.process.ticks,
                "boot": daemon.process.boot,
                "log": str(daemon.log),
            }
            for daemon in record.daemons
        ],
    }
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=2) + "\n")
    fresh.replace(file)


def load(file: Path) -> Record | None:
    """The record, None when there is none. Raises ValueError when the file is not one."""
    try:
        document = json.loads(file.read_text())
        return Record(
            name=document["name"],
            registry_port=document["registry_port"],
            gateway_port=document["gateway_port"],
            munge_socket=Path(document["munge_socket"]),
            nodes=document["nodes"],
            locations=document["locations"],
            daemons=tuple(
                Daemon(item["name"], Process(item["pid"], item["ticks"], item["boot"]), Path(item["log"]))
                for item in document["daemons"]
            ),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a site's record ({error!r}): end its daemons by hand and remove it") from error
