"""From a tag to an identifier: the gateway is asked by a process that has become the user for good.

What the user chooses (the munge socket) and what the network answers are thus never handled with root's rights; only an
identifier comes back, whose access is checked again where the image is looked up.
"""

import os

from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.request import Request
    from runtime.udiroot import Udiroot


def identifier(request: "Request", conf: "Udiroot") -> str:
    """The identifier of the requested image. Raises StartRefused with the gateway's reason."""
    if not conf.image_gateway:
        raise StartRefused(f"image {request.image}: no imageGateway in udiRoot.conf: name the image by its id (id:...)")
    answer, question = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # above all the launcher's socket: steps are root's to send
            os.closerange(3, question)
            os.closerange(question + 1, 256)
            os.setresgid(request.gid, request.gid, request.gid)
            os.setresuid(request.uid, request.uid, request.uid)
            os.write(question, ask(request, conf).encode("utf-8", "surrogateescape")[:8000])
            status = 0
        finally:
            os._exit(status)
    os.close(question)
    with os.fdopen(answer, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    os.waitpid(child, 0)
    verdict, _, rest = text.partition(":")
    if verdict == "id":
        return rest
    raise StartRefused(rest or f"image {request.image}: the look-up ended without an answer: try again")


def ask(request: "Request", conf: "Udiroot") -> str:
    """`id:<identifier>` or `no:<reason>`."""
    from runtime import gateway

    kind, tag = request.image
    try:
        client = gateway.Gateway(conf.image_gateway, conf.system, conf.gateway_timeout, request.munge_socket or None)
        found = client.lookup(kind, tag)
    except gateway.NotFound as error:
        return f"no:image {kind}:{tag} is not on {conf.system} ({error}): pull it with `shifterimg pull {kind}:{tag}`"
    except (gateway.GatewayError, ValueError) as error:
        return f"no:image {kind}:{tag}: cannot be looked up: {error}"
    return f"id:{found['id']}"
