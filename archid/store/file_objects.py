"""Which file objects (inodes) the files of a tree are: two flat columns, by the files' numbers.

The chunk index knows bytes by the file object that holds them, whatever names it has. For a tree
that stands somebody looks at every file; a tree that is being put together is known in part
already, since what was linked into it was looked at then.
"""

from __future__ import annotations

import os
import stat
from array import array
from typing import NamedTuple, Self

from archid.store.tree_folder import TreeFolder
from protocol.layout import Layout


class FileObjects(NamedTuple):
    """Device and inode of each file of a layout; an inode of 0 where none is known.

    Both as signed numbers, which is all that a database takes: some file systems use all 64 bits.
    """

    devices: array[int]
    inodes: array[int]

    @classmethod
    def unknown(cls, layout: Layout) -> Self:
        """Columns for all files, of which nothing is known."""
        empty = bytes(8 * len(layout.files))
        return cls(array("q", empty), array("q", empty))

    def put(self, number: int, info: os.stat_result) -> None:
        """This is what the file with a number is."""
        self.devices[number], self.inodes[number] = _signed(info.st_dev), _signed(info.st_ino)

    def forget(self, number: int) -> None:
        """The file with a number is not known to be anything any more."""
        self.inodes[number] = 0

    def is_known(self, number: int) -> bool:
        return self.inodes[number] != 0

    def look(self, layout: Layout, folder: TreeFolder) -> None:
        """Look at every file with content that is not known; raises OSError.

        What is missing, cut short or no regular file stays unknown.
        """
        files = layout.files
        for number in range(len(files)):
            if self.inodes[number] or not files.size_bytes(number):
                continue
            above, _, name = files.path(number).rpartition("/")
            try:
                info = os.stat(name, dir_fd=folder.folder(above), follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISREG(info.st_mode) and info.st_size == files.size_bytes(number):
                self.put(number, info)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
