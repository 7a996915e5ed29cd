"""Identities: the same bytes are different things in different contexts."""

from __future__ import annotations

import pytest
from blake3 import blake3

from protocol.errors import FormatError
from protocol.ids import (
    ChunkId,
    Digest,
    DocumentId,
    FleetId,
    KeyId,
    ListId,
    ManifestId,
    NodeId,
    PageId,
    PieceId,
    ReleaseId,
    TreeHash,
)

KINDS = [
    ChunkId,
    DocumentId,
    FleetId,
    KeyId,
    ListId,
    ManifestId,
    NodeId,
    PageId,
    PieceId,
    TreeHash,
]


def test_the_same_bytes_have_another_id_as_every_kind_of_thing() -> None:
    assert len({kind.of(b"bytes") for kind in KINDS}) == len(KINDS)


def test_a_chunk_is_named_by_what_b3sum_prints() -> None:
    assert ChunkId.of(b"").hex() == (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )
    assert ChunkId.of(b"x") == blake3(b"x").digest()


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_is_32_bytes_and_survives_hexadecimal(kind: type[Digest]) -> None:
    name = kind.of(b"x")
    assert kind.from_hex(name.hex()) == name
    assert str(name) == name.hex()
    assert repr(name) == f"{kind.__name__}({name.hex()[:12]})"
    with pytest.raises(FormatError):
        kind(b"x" * 31)
    for wrong in ("", "zz" * 32, "00" * 33):
        with pytest.raises(FormatError):
            kind.from_hex(wrong)


def test_a_release_id_is_16_bytes() -> None:
    assert str(ReleaseId(bytes(16))) == "00" * 16
    with pytest.raises(FormatError):
        ReleaseId(bytes(32))
