"""JSON that a client sent, in a body or inside a credential: taken only when the gateway can also store and pass it on."""

from __future__ import annotations

import json
from typing import Any


def parsed(raw: bytes) -> Any:
    """The value in `raw`. Raises ValueError: no JSON, nested beyond what Python follows, or with half a surrogate pair
    (as "\\ud800"), which is no character and has no form in UTF-8.
    """
    try:
        value = json.loads(raw)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value
