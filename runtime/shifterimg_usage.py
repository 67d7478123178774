"""The command line of shifterimg: one table of verbs and options, and what is made from it.

The parser, ``--help``, the completions' test and the manual page's test all read ``VERBS`` and ``OPTIONS``, so a new
option is one line here. Options may stand before or after the verb; ``--`` ends them. Nothing here knows the gateway.
"""

from __future__ import annotations

from runtime.record import Record


class UsageError(Exception):
    """The command line is not understood; the message says which word and what is allowed."""


class Option(Record):
    """``argument``: how help calls its value, "" for a switch. A ``repeated`` option collects a comma list."""

    name: str
    short: str
    argument: str
    help: str
    repeated: bool = False


class Verb(Record):
    """``arguments``: (name, is it required); the last may end in ``...``. ``options``: names beside COMMON."""

    name: str
    arguments: tuple[tuple[str, bool], ...]
    options: tuple[str, ...]
    summary: str
    more: str
    example: str


OPTIONS = {
    option.name: option
    for option in (
        Option("help", "h", "", "print this help, or a verb's own, and stop"),
        Option("version", "V", "", "print the version and stop"),
        Option("verbose", "v", "", "one line a state instead of a redrawn one; errors with their cause"),
        Option("json", "j", "", "print the answer as JSON"),
        Option("user", "u", "LIST", "users who may see and run the image, beside you: names or ids, comma list", True),
        Option("group", "g", "LIST", "groups who may see and run the image: names or ids, comma list", True),
        Option("public", "", "", "let everybody see and run the image"),
        Option("username", "", "NAME", "the user name at the registry, instead of asking for it"),
        Option("format", "F", "FORMAT", "squashfs, oci-layout (its directory or tar) or docker-archive"),
        Option("by", "", "USER", "only what this user did"),
        Option("action", "", "ACTION", "only this action: pull, ready, failure, removed ..."),
        Option("since", "", "TIME", "only from this time on: 2026-11-23, 2026-11-23T18:00:00+01:00 or 2h (ago)"),
        Option("until", "", "TIME", "only before this time"),
        Option("limit", "n", "NUMBER", "at most so many events, the latest (default 100)"),
        Option("dry-run", "", "", "only show what would expire"),
        Option("as-of", "", "TIME", "the list as it was at this time"),
    )
}

COMMON = ("help", "version", "verbose", "json")

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "images", (), ("as-of",), "list the images that you may run",
            "One line an image: system, type, status, id, time of the last pull, tag; sorted by tag.",
            "shifterimg images",
        ),
        Verb(
            "lookup", (("IMAGE", True),), (), "print the id of an image",
            "Exit status 1 when there is no such image, or it is not visible to you.",
            "shifterimg lookup ubuntu:24.04",
        ),
        Verb(
            "pull", (("IMAGE", True),), ("user", "group"), "have the gateway fetch an image, and wait for it",
            "With --user or --group the image is private to you and to them. Exit status 1, with the reason, when the\n"
            "pull fails. Interrupting this command does not stop the pull.",
            "shifterimg pull --user alice,bob ubuntu:24.04",
        ),
        Verb(
            "pullnb", (("IMAGE", True),), ("user", "group"), "like pull, but do not wait",
            "Prints the state that the pull is in now; 'shifterimg queue' shows how it goes on.",
            "shifterimg pullnb ubuntu:24.04",
        ),
        Verb(
            "login", (("LOCATION", False),), ("username",), "save your user name and password for a registry",
            "LOCATION is a registry as the gateway calls it; without it, the gateway's default one. The registry is\n"
            "asked whether it takes the password; only then it is saved, encrypted, in ~/.udiRoot/.cred. If the\n"
            "standard input is no terminal, the user name and the password are read from it, one a line.",
            "shifterimg login registry.example.org",
        ),
        Verb(
            "rm", (("IMAGE...", True),), (), "remove images of yours",
            "The tag is gone at once, the file later, when no tag and no running container needs it.",
            "shifterimg rm myproject/tool:old",
        ),
        Verb(
            "restore", (("IMAGE", True),), (), "bring an expired image back (administrators)",
            "As long as its file has not been swept from the site's store; afterwards, pull it again.",
            "shifterimg restore myproject/tool:old",
        ),
        Verb(
            "import", (("FILE", True), ("IMAGE", True)), ("format", "user", "group"),
            "make an image from a file that the gateway can read",
            "Only for those whom the site lets import images. Without --format the file's name decides.",
            "shifterimg import /scratch/tool.squashfs custom:tool:1.0",
        ),
        Verb(
            "acl", (("IMAGE", True),), ("user", "group", "public"), "show or change who may see and run an image",
            "Without options it shows. --user and --group replace the lists; you yourself always stay on them.",
            "shifterimg acl --group physics myproject/tool:1.0",
        ),
        Verb(
            "history", (("IMAGE", False),), ("by", "action", "since", "until", "limit"),
            "what happened to the images that you may see",
            "Oldest first: time, user, action, image, detail. With -v also the stages of each pull.",
            "shifterimg history --since 2026-11-01 ubuntu:24.04",
        ),
        Verb(
            "queue", (), (), "list pulls that are waiting, running or failed",
            "One line a pull: state, image, and its progress or reason.",
            "shifterimg queue",
        ),
        Verb(
            "expire", (("IMAGE", True),), (), "let an image expire now (administrators)",
            "'shifterimg restore' brings it back while its file is still there.",
            "shifterimg expire ubuntu:14.04",
        ),
        Verb(
            "autoexpire", (), ("dry-run",), "let all images expire that nobody used for long (administrators)",
            "Prints the id and the name of each image that expired.",
            "shifterimg autoexpire",
        ),
    )
}  # fmt: skip

STATUSES = ("0 done", "1 failed", "2 wrong usage", "3 not allowed", "4 gateway unreachable")


class Command(Record):
    """A parsed command line. ``verb`` is None only with ``help`` or ``version`` among the switches."""

    verb: Verb | None
    arguments: tuple[str, ...]
    switches: frozenset[str]
    values: tuple[tuple[str, str], ...]

    def has(self, option: str) -> bool:
        return option in self.switches

    def value(self, option: str) -> str | None:
        """The last value given for ``option``."""
        return next((value for name, value in reversed(self.values) if name == option), None)

    def items(self, option: str) -> tuple[str, ...]:
        """All values of a repeated option, comma lists taken apart, empty items dropped."""
        return tuple(
            item.strip()
            for name, value in self.values
            if name == option
            for item in value.split(",")
            if item.strip()
        )  # fmt: skip


def parse(words: list[str]) -> Command:
    """The command that ``words`` (without the program's name) say. Raises UsageError."""
    plain: list[str] = []
    switches: set[str] = set()
    values: list[tuple[str, str]] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            plain += queue
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = _long(name)
        elif word.startswith("-") and word != "-":
            option, value, equals = _short(word[1]), word[2:], ""
            if not option.argument and value:  # -vj is -v -j
                queue.insert(0, "-" + value)
                value = ""
            elif value:
                equals, value = "=", value.removeprefix("=")
        else:
            plain.append(word)
            continue
        if not option.argument:
            if equals:
                raise UsageError(f"--{option.name} takes no value")
            switches.add(option.name)
            continue
        if not equals:
            if not queue:
                raise UsageError(f"--{option.name} needs a value: --{option.name} {option.argument}")
            value = queue.pop(0)
        values.append((option.name, value))
    return _check(plain, switches, values)


def _long(name: str) -> Option:
    if name in OPTIONS:
        return OPTIONS[name]
    raise UsageError(f"unknown option --{name}{_nearest(name, list(OPTIONS), '--')}")


def _short(letter: str) -> Option:
    for option in OPTIONS.values():
        if option.short == letter:
            return option
    raise UsageError(f"unknown option -{letter}")


def _nearest(word: str, known: list[str], prefix: str = "") -> str:
    import difflib  # only for a mistake: it costs 5 ms

    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _check(plain: list[str], switches: set[str], values: list[tuple[str, str]]) -> Command:
    stop = switches & {"help", "version"}
    if not plain:
        if not stop:
            raise UsageError("what to do? Give a verb: " + " ".join(VERBS))
        return Command(None, (), frozenset(switches), tuple(values))
    name, *arguments = plain
    verb = VERBS.get(name)
    if verb is None:
        raise UsageError(f"unknown verb {name!r}{_nearest(name, list(VERBS)) or '; known are ' + ' '.join(VERBS)}")
    command = Command(verb, tuple(arguments), frozenset(switches), tuple(values))
    if stop:
        return command
    allowed = {*COMMON, *verb.options}
    for option in [*sorted(switches), *(option for option, _ in values)]:
        if option not in allowed:
            raise UsageError(f"{verb.name} takes no --{option}")
    for number, (argument, required) in enumerate(verb.arguments):
        if required and len(arguments) <= number:
            raise UsageError(f"{verb.name} needs {_words(verb)}")
        if argument.endswith("..."):
            return command
    if len(arguments) > len(verb.arguments):
        extra = arguments[len(verb.arguments)]
        raise UsageError(f"{verb.name} takes {_words(verb) or 'no arguments'}, not also {extra!r}")
    return command


def _words(verb: Verb) -> str:
    return " ".join(name if required else f"[{name}]" for name, required in verb.arguments)


def help_text(verb: Verb | None = None) -> str:
    """What ``--help`` prints, for all verbs or for one."""
    if verb is None:
        lines = [
            "Usage: shifterimg [OPTION...] VERB [ARGUMENT...]",
            "",
            "Ask the image gateway for container images.",
            "",
        ]
        lines += ["Verbs:"]
        lines += [f"  {f'{each.name} {_words(each)}':22} {each.summary}" for each in VERBS.values()]
        lines += ["", "Options, before or after the verb:", *map(_option_line, (OPTIONS[name] for name in COMMON))]
        lines += ["", "'shifterimg VERB --help' shows a verb's own options.", "", "Examples:"]
        lines += [
            "  shifterimg pull ubuntu:24.04          # then: shifter --image=ubuntu:24.04 cat /etc/os-release",
            "  shifterimg pull ubuntu@sha256:<digest>  # exactly this content, whatever the tag says tomorrow",
            "  shifterimg pull --group physics registry.example.org/team/tool:1.0",
            "  shifterimg images",
        ]
        lines += ["", "An IMAGE is [docker:]NAME[:TAG][@sha256:DIGEST]; without a tag, :latest."]
        lines += [f"Exit status: {', '.join(STATUSES)}."]
        return "\n".join(lines) + "\n"
    own = (*verb.options, *COMMON)
    lines = [" ".join(["Usage: shifterimg", verb.name, "[OPTION...]", _words(verb)]).rstrip(), ""]
    lines += [f"{verb.summary[0].upper()}{verb.summary[1:]}.", verb.more, "", "Options:"]
    lines += [_option_line(OPTIONS[name]) for name in own]
    lines += ["", f"Example:\n  {verb.example}", "", f"Exit status: {', '.join(STATUSES)}."]
    return "\n".join(lines) + "\n"


def _option_line(option: Option) -> str:
    short = f"-{option.short}, " if option.short else "    "
    argument = f" {option.argument}" if option.argument else ""
    return f"  {f'{short}--{option.name}{argument}':22} {option.help}"
