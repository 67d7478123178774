"""How a pull ends when it does not end well: one sentence for the user's terminal, or word that it is no longer ours."""

from __future__ import annotations


class PullFailed(Exception):
    """The image could not be had. The text is one sentence: what happened, to what, what to do next; it holds no
    secrets.
    """


class PullAborted(Exception):
    """The pull was stopped on purpose, by `Observer.check`: its lease went to somebody else, or the gateway shuts
    down.
    """
