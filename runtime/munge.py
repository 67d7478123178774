"""Munge credentials for the gateway, made by libmunge itself.

``encode`` proves to the gateway who is asking: munged stamps the payload with the real uid and gid of the calling
process. The library is loaded by ctypes on first use, so there is no process to fork, nothing to build and, on
nodes, no wheel to install. A credential is good for one request only: munge refuses replays, therefore make a new
one for each attempt. Decoding is the gateway's business and not here.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # importing typing for this alone would cost every container start several milliseconds
if TYPE_CHECKING:
    from pathlib import Path

LIBRARY = "libmunge.so.2"
_OPTION_SOCKET = 8  # MUNGE_OPT_SOCKET in munge.h

_library: ctypes.CDLL | None = None
_libc: ctypes.CDLL | None = None


class MungeError(Exception):
    """No credential could be made; the text says why and what to do next."""


def default_socket() -> str | None:
    """The socket named by ``MUNGE_SOCKET``, or None for the one compiled into libmunge."""
    return os.environ.get("MUNGE_SOCKET") or None


def encode(payload: bytes = b"", socket: str | Path | None = None) -> str:
    """A credential ``MUNGE:...:`` over ``payload``, made by the munged behind ``socket`` (None: libmunge's default).

    Raises MungeError when the library is missing or munged refuses or does not answer.
    See munge_encode(3) and munge_ctx(3).
    """
    library, libc = _load()
    context = library.munge_ctx_create()
    if not context:
        raise MungeError("munge: out of memory")
    credential = ctypes.c_void_p()
    try:
        if socket is not None:
            path = ctypes.c_char_p(os.fsencode(socket))
            code = library.munge_ctx_set(ctypes.c_void_p(context), ctypes.c_int(_OPTION_SOCKET), path)
            if code != 0:
                raise MungeError(_explain(library, context, code, socket))
        code = library.munge_encode(ctypes.byref(credential), context, payload or None, len(payload))
        if code != 0:
            raise MungeError(_explain(library, context, code, socket))
        return ctypes.string_at(credential.value or 0).decode("ascii")
    finally:
        if credential.value:
            libc.free(credential)
        library.munge_ctx_destroy(context)


def _load() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    global _library, _libc
    if _library is None or _libc is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise MungeError(f"munge: cannot load {LIBRARY} ({error}); install the munge library (libmunge2)") from None
        library.munge_ctx_create.restype = ctypes.c_void_p
        library.munge_ctx_create.argtypes = []
        library.munge_ctx_destroy.restype = None
        library.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
        library.munge_ctx_strerror.restype = ctypes.c_char_p
        library.munge_ctx_strerror.argtypes = [ctypes.c_void_p]
        library.munge_ctx_set.restype = ctypes.c_int  # variadic: argument types are given at the call
        library.munge_encode.restype = ctypes.c_int
        library.munge_encode.argtypes = [
            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int,
        ]  # fmt: skip
        library.munge_strerror.restype = ctypes.c_char_p
        library.munge_strerror.argtypes = [ctypes.c_int]
        libc = ctypes.CDLL(None)
        libc.free.restype = None
        libc.free.argtypes = [ctypes.c_void_p]
        _library, _libc = library, libc
    return _library, _libc


def _explain(library: ctypes.CDLL, context: int, code: int, socket: str | Path | None) -> str:
    # The context knows more ("Failed to access "/run/...": No such file"), but says nothing for some errors.
    text = library.munge_ctx_strerror(context) or library.munge_strerror(code) or b"unknown error"
    where = f" at {os.fsdecode(socket)}" if socket is not None else ""
    reason = text.decode(errors="replace").removesuffix(" (Did you start munged?)")
    return f"munge: {reason}; is munged running{where}?"
