"""Signatures count once a key, over the exact bytes, for one type of document."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import Value, pack
from protocol.envelope import Envelope, PublicKey, Signature, count_valid, signing_input
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import KeyId
from protocol.limits import MAX_SIGNATURES
from tests.unit.protocol.arbitrary import hostile_bytes, only_protocol_errors
from tests.unit.protocol.signed_fleet import Signer

A, B = Signer("a"), Signer("b")
KEYS = {signer.public_key.key_id: signer.public_key for signer in (A, B)}
PAYLOAD = b"payload"
BOTH = Envelope(PAYLOAD, (A.sign("head", PAYLOAD), B.sign("head", PAYLOAD)))


def test_each_key_that_signed_counts() -> None:
    assert count_valid(BOTH, "head", KEYS) == {A.public_key.key_id, B.public_key.key_id}


def test_a_signature_is_for_one_type_only() -> None:
    assert count_valid(BOTH, "grants", KEYS) == set()


def test_a_signature_is_for_the_exact_bytes() -> None:
    assert count_valid(replace(BOTH, payload=PAYLOAD + b"\0"), "head", KEYS) == set()


def test_the_type_cannot_be_shifted_into_the_payload() -> None:
    assert signing_input("head", b"x") != signing_input("hea", b"dx")
    assert signing_input("a", b"b\0c") != signing_input("a\0b", b"c")[:-1]


def test_unknown_keys_are_passed_over() -> None:
    stranger = Signer("c").sign("head", PAYLOAD)
    envelope = Envelope(PAYLOAD, (stranger, A.sign("head", PAYLOAD)))
    assert count_valid(envelope, "head", KEYS) == {A.public_key.key_id}


def test_a_signature_under_another_keys_name_does_not_count() -> None:
    borrowed = Signature(B.public_key.key_id, A.sign("head", PAYLOAD).value)
    assert count_valid(Envelope(PAYLOAD, (borrowed,)), "head", KEYS) == set()


def test_two_signatures_of_one_key_are_refused() -> None:
    one = A.sign("head", PAYLOAD)
    with pytest.raises(FormatError, match="two signatures"):
        Envelope(PAYLOAD, (one, one))
    pair: Value = [one.key_id, one.value]
    with pytest.raises(FormatError, match="two signatures"):
        Envelope.decode(pack(["envelope", 1, PAYLOAD, [pair, pair]]), max_bytes=1000)


def test_the_order_of_signatures_is_part_of_the_format() -> None:
    pairs: list[Value] = [[one.key_id, one.value] for one in BOTH.signatures]
    assert Envelope(PAYLOAD, BOTH.signatures[::-1]) == BOTH
    assert Envelope.decode(pack(["envelope", 1, PAYLOAD, pairs]), max_bytes=1000) == BOTH
    with pytest.raises(FormatError, match="order"):
        Envelope.decode(pack(["envelope", 1, PAYLOAD, pairs[::-1]]), max_bytes=1000)


def test_sizes_and_counts_are_bounded() -> None:
    many = tuple(Signature(KeyId.of(bytes([n])), bytes(64)) for n in range(MAX_SIGNATURES + 1))
    with pytest.raises(LimitExceeded):
        Envelope(b"", many)
    with pytest.raises(LimitExceeded):
        Envelope.decode(BOTH.encode(), max_bytes=len(BOTH.encode()) - 1)
    with pytest.raises(FormatError):
        Envelope.decode(pack(["envelope", 1, b"", [[KeyId.of(b""), b"short"]]]), max_bytes=1000)


def test_a_key_that_is_no_point_verifies_nothing() -> None:
    assert not PublicKey(b"\xff" * 32).verify("head", PAYLOAD, bytes(64))
    assert not A.public_key.verify("head", PAYLOAD, b"short")
    with pytest.raises(FormatError):
        PublicKey(b"short")


@given(st.binary(max_size=200), st.sets(st.sampled_from("abcdef")))
def test_an_envelope_survives_its_encoding(payload: bytes, names: set[str]) -> None:
    signatures = tuple(Signer(name).sign("x", payload) for name in sorted(names))
    envelope = Envelope(payload, signatures)
    assert Envelope.decode(envelope.encode(), max_bytes=4096) == envelope


@given(hostile_bytes(BOTH.encode()))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    only_protocol_errors(lambda raw: Envelope.decode(raw, max_bytes=4096), data)
