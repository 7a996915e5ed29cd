"""What the two ends of a publication say of a folder besides its bytes.

For every file there are *facts*: when its content and its inode changed last, and which inode on
which device it is. Two files with the same path, size and facts hold the same bytes, as long as
the file system counts changes, which is for the daemon to judge (`archid.store.settling`). The
digest of a whole folder's listing says with one comparison that nothing in it has changed.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from blake3 import blake3

FACTS_BYTES: Final = 32
LISTING_CONTEXT: Final = "archid 2026-11 listing of a folder to publish"
_FACTS: Final = struct.Struct(">4Q")
_WORD: Final = 2**64 - 1
_SIZE_BYTES: Final = 8


def facts_of(info: os.stat_result) -> bytes:
    """The facts of a file: content changed, inode changed (ns), inode, device; 8 bytes each."""
    return _FACTS.pack(
        info.st_mtime_ns & _WORD, info.st_ctime_ns & _WORD, info.st_ino & _WORD, info.st_dev & _WORD
    )


class SourceListing:
    """Takes a folder's entries in path order and gives their digest."""

    def __init__(self) -> None:
        # Each text begins with its kind, and no path holds a zero: the joined texts say one thing.
        self._texts: list[str] = []
        self._facts: list[bytes] = []

    def add_folder(self, path: str) -> None:
        self._texts.append("d" + path)

    def add_link(self, path: str, target: str) -> None:
        self._texts += ("l" + path, "t" + target)

    def add_file(self, path: str, executable: bool, size_bytes: int, facts: bytes) -> None:
        """`facts` as `facts_of` gives them."""
        self._texts.append(("x" if executable else "f") + path)
        self._facts += (size_bytes.to_bytes(_SIZE_BYTES, "big"), facts)

    def digest(self) -> bytes:
        """32 bytes, the same for the same entries only."""
        texts = "\0".join(self._texts).encode("utf-8", "surrogateescape")
        hasher = blake3(derive_key_context=LISTING_CONTEXT)
        hasher.update(len(texts).to_bytes(_SIZE_BYTES, "big"))
        hasher.update(texts)
        hasher.update(b"".join(self._facts))
        return hasher.digest()
