"""Decodes munge credentials: who sent a request, proved by the cluster's shared key.

Through libmunge by ctypes, so no process is forked for a request, and the interpreter lock is free meanwhile. Munge itself
refuses forged credentials, and remembers those seen: a replayed or an expired one is refused here too, except by
`decode_saved`. See munge_decode(3). The payload may hold passwords: nothing here puts it into an error or a log.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

_LIBRARY = "libmunge.so.2"
_OPTION_SOCKET = 8  # MUNGE_OPT_SOCKET in munge.h
_SUCCESS, _SNAFU, _NO_SOCKET, _TIMEOUT = 0, 1, 6, 7
_EXPIRED, _REWOUND, _REPLAYED = 15, 16, 17
# What these codes mean is the sender's fault; everything else says that munged cannot serve us now.
_SENDER = {
    3: "the credential is too long",
    8: "the credential is malformed",
    9: "the credential has a version that this munge does not know",
    10: "the credential uses a cipher that this munge does not know",
    11: "the credential uses a MAC that this munge does not know",
    12: "the credential uses a compression that this munge does not know",
    13: "the credential's realm is unknown",
    14: "the credential is not from this system (wrong key), or was changed",
    _EXPIRED: "the credential has expired; are the clocks in step?",
    _REWOUND: "the credential is from the future; are the clocks in step?",
    _REPLAYED: "the credential was used before; make a new one for each request",
    18: "the credential is not for this user",
}


class CredentialRefused(Exception):
    """The credential proves nothing; the text says why."""


class MungeUnavailable(Exception):
    """munged did not answer, so nobody can be authenticated now; the text says which socket."""


@dataclass(frozen=True)
class Decoded:
    """uid and gid of the process that made the credential, and the bytes it put in (not shown: may hold passwords)."""

    uid: int
    gid: int
    payload: bytes = field(repr=False)


class Munge:
    """The munged behind one socket (None: libmunge's default). Safe to use from many threads."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._local = threading.local()
        self._library, self._libc = _load()

    def decode(self, credential: str) -> Decoded:
        """Who made `credential`. Raises CredentialRefused, MungeUnavailable."""
        return self._decode(credential, accepted=frozenset({_SUCCESS}))

    def decode_saved(self, credential: str) -> Decoded:
        """As `decode`, for one that was kept in a user's file: its age and earlier use are no faults."""
        return self._decode(credential, accepted=frozenset({_SUCCESS, _EXPIRED, _REWOUND, _REPLAYED}))

    def _decode(self, credential: str, accepted: frozenset[int]) -> Decoded:
        try:
            raw = credential.strip().encode("ascii")
        except UnicodeEncodeError:
            raise CredentialRefused("the credential is malformed") from None
        if b"\0" in raw or not raw.startswith(b"MUNGE:"):
            raise CredentialRefused("the credential is malformed")
        context = self._context()
        payload, length = ctypes.c_void_p(), ctypes.c_int(0)
        uid, gid = ctypes.c_uint32(0), ctypes.c_uint32(0)
        code = self._library.munge_decode(
            raw, context, ctypes.byref(payload), ctypes.byref(length), ctypes.byref(uid), ctypes.byref(gid)
        )
        try:
            if code not in accepted:
                raise self._error(code, context)
            content = ctypes.string_at(payload.value, length.value) if payload.value else b""
            return Decoded(uid.value, gid.value, content)
        finally:
            if payload.value:
                self._libc.free(payload)

    def _context(self) -> ctypes.c_void_p:
        # A context is not safe to share between threads (munge_ctx(3)); one a thread lives as long as the thread.
        held: _Context | None = getattr(self._local, "context", None)
        if held is None:
            self._local.context = held = _Context(self._library, self._socket)
        return held.pointer

    def _error(self, code: int, context: ctypes.c_void_p) -> Exception:
        if code in _SENDER:
            return CredentialRefused(_SENDER[code])
        text = self._library.munge_ctx_strerror(context) or self._library.munge_strerror(code) or b"unknown error"
        return MungeUnavailable(f"munge: {text.decode(errors='replace')}; is munged running at {self._where()}?")

    def _where(self) -> str:
        return str(self._socket) if self._socket else "its default socket"


class _Context:
    """One munge_ctx_t, destroyed with its thread."""

    def __init__(self, library: ctypes.CDLL, socket: Path | None) -> None:
        self._library = library
        self.pointer = ctypes.c_void_p(library.munge_ctx_create())
        if not self.pointer.value:
            raise MungeUnavailable("munge: out of memory")
        if socket is not None:
            library.munge_ctx_set(self.pointer, ctypes.c_int(_OPTION_SOCKET), ctypes.c_char_p(os.fsencode(socket)))

    def __del__(self) -> None:
        if self.pointer.value:
            self._library.munge_ctx_destroy(self.pointer)


def _load() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MungeUnavailable(f"cannot load {_LIBRARY} ({error}); install libmunge2") from error
    library.munge_ctx_create.restype = ctypes.c_void_p
    library.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
    library.munge_ctx_destroy.restype = None
    library.munge_ctx_strerror.argtypes = [ctypes.c_void_p]
    library.munge_ctx_strerror.restype = ctypes.c_char_p
    library.munge_strerror.argtypes = [ctypes.c_int]
    library.munge_strerror.restype = ctypes.c_char_p
    library.munge_decode.argtypes = [
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_int),
        ctypes.POINTER(ctypes.c_uint32),
        ctypes.POINTER(ctypes.c_uint32),
    ]
    library.munge_decode.restype = ctypes.c_int
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free.restype = None
    return library, libc
