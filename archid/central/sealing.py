"""From a passphrase to a key: scrypt (RFC 7914), with its costs written beside what it seals.

PKCS #8 as `cryptography` writes it would stretch with 2048 rounds of PBKDF2 only, which a graphics
card tries by the million.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Self

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocol.canonical import Fields, Value

MAX_COST_LOG2: Final = 20
_COST_LOG2: Final = 16  # 64 MiB and about a quarter of a second
_BLOCK_SIZE: Final = 8
_PARALLEL: Final = 1


@dataclass(frozen=True)
class Stretching:
    """How a passphrase becomes a key of 32 bytes."""

    salt: bytes
    cost_log2: int = _COST_LOG2
    block_size: int = _BLOCK_SIZE
    parallel: int = _PARALLEL

    @classmethod
    def draw(cls) -> Self:
        """Today's costs and a new salt."""
        return cls(os.urandom(16))

    def key(self, passphrase: str) -> bytes:
        """The key that this passphrase gives."""
        stretched = Scrypt(
            salt=self.salt, length=32, n=1 << self.cost_log2, r=self.block_size, p=self.parallel
        )
        return stretched.derive(passphrase.encode())

    def to_values(self) -> list[Value]:
        """Costs and salt, as `read` takes them."""
        return [self.cost_log2, self.block_size, self.parallel, self.salt]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """What `to_values` gave, within bounds; raises FormatError."""
        cost_log2 = fields.integer("cost", low=10, high=MAX_COST_LOG2)
        block_size = fields.integer("block size", low=1, high=16)
        parallel = fields.integer("parallelism", low=1, high=16)
        return cls(fields.binary("salt", max_bytes=64), cost_log2, block_size, parallel)
