"""Secrets of a job on their way to its nodes: munge credentials that only root may open.

Whoever submits a job seals; the credential travels in the job's environment, where the user and Slurm's records see
only cipher text; root on each node opens it and learns, vouched for by munge, whose it is. A job may wait for days
and start again, so expired and replayed credentials are opened too: what a credential says is good for its job only,
and is checked against that.
"""

import ctypes
import ctypes.util

from wlm.failure import NodeFault

SOCKET, UID_RESTRICTION = 8, 9  # munge_opt_t, munge(3)
SUCCESS, EXPIRED, REWOUND, REPLAYED = 0, 15, 16, 17  # munge_err_t


def seal(payload: bytes, socket: "str | None" = None) -> str:
    """A credential over `payload` that only root can open. Raises NodeFault: no munge here."""
    library, context = _open(socket)
    try:
        library.munge_ctx_set(context, UID_RESTRICTION, ctypes.c_uint32(0))
        credential = ctypes.c_char_p()
        code = library.munge_encode(ctypes.byref(credential), context, payload, len(payload))
        if code != SUCCESS or credential.value is None:
            raise NodeFault(f"munge: {_said(library, code)}: is munged running?")
        return credential.value.decode("ascii")  # the copy in C lives until this short process ends
    finally:
        library.munge_ctx_destroy(context)


def unseal(credential: str, socket: "str | None" = None) -> "tuple[bytes, int]":
    """(payload, uid of who sealed it). Root only. Raises ValueError for what is no credential, NodeFault: no munge
    here.
    """
    library, context = _open(socket)
    try:
        data, length = ctypes.c_void_p(), ctypes.c_int()
        uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
        code = library.munge_decode(
            credential.encode("ascii", "replace"), context,
            ctypes.byref(data), ctypes.byref(length), ctypes.byref(uid), ctypes.byref(gid),
        )  # fmt: skip
        if code in (SUCCESS, EXPIRED, REWOUND, REPLAYED) and data.value is not None:
            return ctypes.string_at(data.value, length.value), uid.value
        if code in (2, 6):  # EMUNGE_NO_MEMORY, EMUNGE_SOCKET
            raise NodeFault(f"munge: {_said(library, code)}: is munged running?")
        raise ValueError(f"munge: {_said(library, code)}")
    finally:
        library.munge_ctx_destroy(context)


def _open(socket: "str | None") -> "tuple[ctypes.CDLL, ctypes.c_void_p]":
    try:
        library = ctypes.CDLL("libmunge.so.2")
    except OSError as error:
        raise NodeFault(f"libmunge: {error}: install munge's library") from None
    library.munge_ctx_create.restype = ctypes.c_void_p
    library.munge_strerror.restype = ctypes.c_char_p
    library.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
    context = ctypes.c_void_p(library.munge_ctx_create())
    if socket:
        library.munge_ctx_set(context, SOCKET, ctypes.c_char_p(socket.encode()))
    return library, context


def _said(library: ctypes.CDLL, code: int) -> str:
    text: bytes = library.munge_strerror(code)
    return text.decode()
