"""The command line of `shifter-wlm VERB`, as the plugin and prolog scripts write it: `--name value` and bare `--flag`.

It is a program's interface to a program, on every node of a job, so argparse (10 ms) is not worth its import.
"""


class ArgumentsInvalid(Exception):
    """An unknown or missing argument: the caller and this program are of different versions."""


def parse(argv: "list[str]", values: "tuple[str, ...]", flags: "tuple[str, ...]" = ()) -> "dict[str, str]":
    """The arguments by name, without dashes; a flag that is given has the value "1". A later one wins.

    Raises ArgumentsInvalid.
    """
    found: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        name = word.removeprefix("--")
        if name == word or name not in values + flags:
            raise ArgumentsInvalid(f"unknown argument {word!r}: known are --{' --'.join(values + flags)}")
        if name in flags:
            found[name] = "1"
            continue
        value = next(rest, None)
        if value is None:
            raise ArgumentsInvalid(f"argument {word} needs a value")
        found[name] = value
    return found


def number(arguments: "dict[str, str]", name: str) -> int:
    """The value of `--name` as a whole number. Raises ArgumentsInvalid when it is absent or none."""
    text = arguments.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise ArgumentsInvalid(f"argument --{name} needs a whole number, not {text!r}")
    return int(text)
