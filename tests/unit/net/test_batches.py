"""What is sent goes out unchanged, in batches of whole TLS records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archid.net.batches import BATCH_BYTES, RECORD_BYTES, batches

SIZES = st.one_of(
    st.integers(0, 64),
    st.integers(RECORD_BYTES - 2, RECORD_BYTES + 2),
    st.integers(BATCH_BYTES - 2, 2 * BATCH_BYTES + RECORD_BYTES + 2),
)


@given(st.lists(SIZES, max_size=6))
def test_the_bytes_stay_and_only_the_last_record_may_be_short(sizes: list[int]) -> None:
    parts = [bytes([n + 1]) * size for n, size in enumerate(sizes)]
    found = [bytes(batch) for batch in batches(parts)]
    assert b"".join(found) == b"".join(parts)
    assert all(0 < len(batch) <= BATCH_BYTES for batch in found)
    assert all(len(batch) % RECORD_BYTES == 0 for batch in found[:-1])


def test_a_large_payload_is_handed_over_without_a_copy() -> None:
    payload = bytes(3 * BATCH_BYTES)
    found = list(batches([payload]))
    assert len(found) == 3
    assert all(isinstance(batch, memoryview) and batch.obj is payload for batch in found)
