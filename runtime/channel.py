"""The planner's side of the conversation with the launcher: records in, steps out, the image's descriptor back."""

import _socket
import sys

from runtime import plan as steps
from runtime.plan import Step
from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Launcher:
    """The conversation with the launcher, over a stream socket."""

    def __init__(self, descriptor: int) -> None:
        self.socket = _socket.socket(fileno=descriptor)

    def receive(self) -> "Iterator[list[str]]":
        """The launcher's records, until its `end`. Raises StartRefused when it ends before."""
        while True:
            head = self._exactly(4)
            for fields in steps.decode_records(head + self._exactly(int.from_bytes(head, "little"))):
                yield fields
                if fields[0] == "end":
                    return

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise StartRefused("the launcher ended before its request was complete")
            data += part
        return data

    def send(self, plan_steps: list[Step]) -> None:
        """Have steps executed."""
        self.socket.sendall(b"".join(map(steps.encode, plan_steps)))

    def sync(self) -> int:
        """Wait until everything sent is executed; a descriptor of the image's root directory."""
        self.send([steps.Sync()])
        data, ancillary, _, _ = self.socket.recvmsg(64, 64)
        for _, kind, content in ancillary:
            if kind == _socket.SCM_RIGHTS:
                return int.from_bytes(content[:4], sys.byteorder)
        if not data:
            raise ConnectionResetError
        raise StartRefused("the launcher sent no image: report this")
