"""``shifterimg``: a user's command for the images of this system.

Reads udiRoot.conf for the system's name and its gateways, runs the verb, and turns every error into one line on
stderr and an exit status: 0 done, 1 failed, 2 wrong usage, 3 not allowed, 4 gateway unreachable; ``-v`` adds what was
tried. It has no privileges, so it lets ``SHIFTER_UDIROOT_CONF`` name another configuration.
"""

from __future__ import annotations

import os
import sys

from runtime import __version__, munge, udiroot
from runtime.credentials import CredentialsError
from runtime.gateway import Gateway, GatewayError, NotAllowed, Unreachable
from runtime.shifterimg_usage import Command, UsageError, help_text, parse
from runtime.shifterimg_verbs import RUN, NoResult, Session

CONFIGURATION = "/etc/shifter/udiRoot.conf"
FAILED, USAGE, NOT_ALLOWED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130


def main(argv: list[str] | None = None, configuration: str = CONFIGURATION) -> int:
    """Run ``argv`` (default: this process's arguments) and return the exit status.

    ``configuration``: the udiRoot.conf of this installation.
    """
    verbose = False
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        verbose = command.has("verbose")
        status = _run(command, os.environ.get("SHIFTER_UDIROOT_CONF") or configuration)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `shifterimg images | head`: the reader has what it wants. Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        return _fail(USAGE, error, "see 'shifterimg --help'")
    except GatewayError as error:
        status = FAILED
        if isinstance(error, NotAllowed):
            status = NOT_ALLOWED
        elif isinstance(error, Unreachable):
            status = UNREACHABLE
        _fail(status, error)
        if verbose:
            for reason in error.reasons:
                print(f"  tried {reason}", file=sys.stderr)
        return status
    except (NoResult, CredentialsError, munge.MungeError, udiroot.ConfigInvalid) as error:
        status = _fail(FAILED, error)
        if verbose and error.__cause__ is not None:
            print(f"  because {error.__cause__}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted; what the gateway has begun goes on, see 'shifterimg queue'")
    except EOFError:
        return _fail(FAILED, "the input ended before an answer was given")


def _run(command: Command, configuration: str) -> int:
    if command.has("help"):
        sys.stdout.write(help_text(command.verb))
        return 0
    if command.has("version") or command.verb is None:
        print(f"shifterimg {__version__}")
        return 0
    site = udiroot.read(configuration, trusted=False)  # without privileges there is nothing that its owner could misuse
    try:
        gateway = Gateway(site.image_gateway, site.system, float(site.gateway_timeout))
    except ValueError as error:
        raise udiroot.ConfigInvalid(f"{configuration}: imageGateway: {error}") from None
    return RUN[command.verb.name](Session(gateway, command, site.default_image_type))


def _fail(status: int, what: object, next_step: str = "") -> int:
    print(f"shifterimg: {what}" + (f"; {next_step}" if next_step else ""), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
