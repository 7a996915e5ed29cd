"""Which fleet this node belongs to: the anchor of everything that it believes.

Written once, by ``archid init`` or ``archid join``, into ``identity/fleet.json``. It names the
first Root that this node believed, by fingerprint, so that trust can be rebuilt from the signed
documents alone when the trust file is damaged, and the addresses at which central was reached
when the node joined.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from archid.addresses import Address, parse_address
from archid.errors import NotFound, StorageError
from protocol.errors import ProtocolError
from protocol.ids import DocumentId, FleetId

FILE_NAME: Final = "fleet.json"
_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 10


class NotAMember(NotFound):
    """This state folder belongs to no fleet yet."""

    code = "not_a_member"


@dataclass(frozen=True)
class Membership:
    """The fleet, the fingerprint of the first Root believed, and where central was."""

    fleet: FleetId
    fleet_name: str
    anchor: DocumentId
    anchor_version: int
    central_addresses: tuple[Address, ...]

    def save(self, identity_folder: Path) -> None:
        """Write it durably, replacing what was there; raises StorageError."""
        text = json.dumps(
            {
                "format": _FORMAT,
                "fleet": self.fleet.hex(),
                "fleet_name": self.fleet_name,
                "anchor": self.anchor.hex(),
                "anchor_version": self.anchor_version,
                "central_addresses": [str(address) for address in self.central_addresses],
            },
            indent=2,
        )
        path = identity_folder / FILE_NAME
        try:
            fd, temporary = tempfile.mkstemp(prefix=".fleet-", dir=identity_folder)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(identity_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, identity_folder: Path) -> Self:
        """Read it; raises NotAMember when there is none, StorageError when it is damaged."""
        path = identity_folder / FILE_NAME
        try:
            with path.open("rb") as file:
                fields = json.loads(file.read(_MAX_BYTES))
            if fields["format"] != _FORMAT:
                raise StorageError(
                    f"{path} has format {fields['format']!r}; this archid knows format {_FORMAT}",
                    remedy="Run the newer archid that wrote it",
                    code="newer_format",
                )
            return cls(
                fleet=FleetId.from_hex(fields["fleet"]),
                fleet_name=str(fields["fleet_name"]),
                anchor=DocumentId.from_hex(fields["anchor"]),
                anchor_version=int(fields["anchor_version"]),
                central_addresses=tuple(
                    parse_address(str(text)) for text in fields["central_addresses"]
                ),
            )
        except FileNotFoundError:
            raise NotAMember(
                f"The state folder {identity_folder.parent} belongs to no fleet yet",
                remedy="Run `archid join` with a token from central, or `archid init` on a new"
                " central",
            ) from None
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
            ProtocolError,
        ) as error:
            raise StorageError(
                f"{path} is damaged: {error}",
                remedy="Restore it from a backup, or run `archid leave` and join again",
                code="membership_damaged",
            ) from error
