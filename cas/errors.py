"""What can go wrong in the store, one class a mistake. The text of each is one line: what happened, to what, what to
do next.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of every error that the store raises on purpose."""


class ObjectMissing(StoreError):
    """No object of that name is in the store."""


class ObjectCorrupt(StoreError):
    """An object's bytes are not those that its name promises."""


class DigestMismatch(StoreError):
    """The bytes put into the store do not have the SHA-256 that the caller expects."""


class SizeMismatch(StoreError):
    """More or fewer bytes were put into the store than the caller expects."""


class SourceChanged(StoreError):
    """A file was written to while it was being copied into the store."""


class StoreFull(StoreError):
    """The file system of the store has no room (or no quota, or no inodes) left."""


class NameInvalid(StoreError):
    """A text that is no object name (64 lower-case hexadecimal digits) was used as one."""
