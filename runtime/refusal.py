"""The one error of a start: why it cannot be, in a sentence for the user."""


class StartRefused(Exception):
    """A start that cannot be: what, which, and what to do next. `node` is true where the node, not the request, is at
    fault."""

    def __init__(self, text: str, node: bool = False) -> None:
        super().__init__(text)
        self.node = node
