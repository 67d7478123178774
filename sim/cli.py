"""`shifter-sim`: a site in a directory (`site`), the main job on one (`demo`), and simulated launches.

Every subcommand's parser carries the function that runs it; this module only parses, prints, and turns an error that a
person can act on into one line and exit status 1.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from sim import demo
from sim.cluster import ClusterError
from sim.site import NAME, Site, SiteError

EXAMPLE = """\
a first site:
  shifter-sim site up --dir /tmp/site
  eval "$(shifter-sim site env --dir /tmp/site)"
  skopeo copy --dest-tls-verify=false oci:X:latest docker://$SHIFTER_REGISTRY/bar:1
  shifterimg pull bar:1
  shifter --image=bar:1 cat /etc/os-release        (as an ordinary user)
  shifter-sim site down --dir /tmp/site
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser(simulation=words[:1] not in (["site"], ["demo"], ["image"])).parse_args(words)
    try:
        status: int = options.run(options)
    except (SiteError, ClusterError) as error:
        print(f"shifter-sim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("shifter-sim: interrupted", file=sys.stderr)
        return 130
    return status


def parser(*, simulation: bool = True) -> argparse.ArgumentParser:
    """The parser of every command line; without `simulation` it lacks the commands whose libraries take half a second."""
    top = argparse.ArgumentParser(
        prog="shifter-sim", description="A whole site in a directory, and simulated launches on imagined ones."
    )
    top.add_argument("--version", action="version", version=f"shifter-sim {version('shifter')}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    site = commands.add_parser(
        "site",
        help="bring a real site up in a directory, use it, take it down",
        description="A whole site under one directory: munged, an OCI registry, the gateway, a node's programs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = site.add_subparsers(title="commands", required=True, metavar="COMMAND")
    up = _action(actions, "up", site_up, "start the site and return when it serves; again: does nothing")
    up.add_argument("--name", default=NAME, help="the system's name (%(default)s)")
    up.add_argument(
        "--nodes", type=int, default=0, help="start a Slurm cluster of so many emulated nodes too (%(default)s)"
    )
    up.add_argument(
        "--munge-socket",
        type=Path,
        metavar="PATH",
        help="where munged listens (DIR/run/munge.socket); one that answers there already is used",
    )
    up.add_argument(
        "--location",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a further registry, for images called NAME/...; may be repeated",
    )
    _action(actions, "env", site_env, 'print export lines for a shell: eval "$(shifter-sim site env --dir DIR)"')
    _action(actions, "status", site_status, "print which parts run; exit status 1 unless all do")
    for name, run, text in (
        ("kill-node", site_kill_node, "take an emulated node away without a word, as a power failure does"),
        ("start-node", site_start_node, "start an emulated node that was killed; returns when it is idle"),
    ):
        _action(actions, name, run, text).add_argument("node", help="its name: n1, n2, ...")
    _action(actions, "down", site_down, "end what `up` started; the directory and its images stay")
    demo.register(commands)
    if simulation:
        from sim import launch_cli, truth_cli

        launch_cli.register(commands)
        truth_cli.register(commands)
    return top


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: object, text: str
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    action.add_argument("--dir", type=Path, required=True, help="the site's directory")
    action.set_defaults(run=run)
    return action


def site_up(options: argparse.Namespace) -> int:
    locations = {}
    for location in options.location:
        name, separator, url = location.partition("=")
        if not separator or not name or "://" not in url:
            raise SiteError(f"--location {location}: write NAME=URL, such as docker.io=https://registry-1.docker.io")
        locations[name] = url
    site = Site.up(
        options.dir, name=options.name, nodes=options.nodes, munge_socket=options.munge_socket, locations=locations
    )
    print(f"up: system {site.name}, gateway {site.gateway}, registry {site.registry}")
    print(f'next: eval "$(shifter-sim site env --dir {shlex.quote(str(site.directory))})"')
    return 0


def site_env(options: argparse.Namespace) -> int:
    for key, value in Site.at(options.dir).environment().items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


def site_status(options: argparse.Namespace) -> int:
    site = Site.at(options.dir)
    status = site.status()
    for name, runs in status.items():
        print(f"{name:<12} {'up' if runs else 'ENDED'}   {site.log(name)}")
    print(f"system {site.name}, gateway {site.gateway}, registry {site.registry}")
    if site.nodes:
        for name, state in site.cluster().states().items():
            print(f"node {name:<7} {state}")
    return 0 if all(status.values()) else 1


def site_kill_node(options: argparse.Namespace) -> int:
    Site.at(options.dir).cluster().kill_node(options.node)
    return 0


def site_start_node(options: argparse.Namespace) -> int:
    Site.at(options.dir).cluster().start_node(options.node)
    return 0


def site_down(options: argparse.Namespace) -> int:
    Site.take_down(options.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
