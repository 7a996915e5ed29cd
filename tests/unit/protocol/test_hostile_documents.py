"""Any bytes, signed or not: nothing but protocol errors, and nothing believed by mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.ids import DocumentId
from protocol.trust import (
    TrustedDocuments,
)
from tests.unit.protocol.arbitrary import hostile_bytes, mutations
from tests.unit.protocol.signed_fleet import (
    NOW_S,
    Estate,
    SignedFleet,
)

FLEET = SignedFleet()
ESTATE = Estate()
ROOT_BYTES = FLEET.sign_root(FLEET.root(2)).encode()
HEAD_BYTES = FLEET.sign_head(replace(ESTATE.head, serial=2)).encode()
GRANTS_BYTES = FLEET.sign_grants(ESTATE.grants_root).encode()


def feed(trusted: TrustedDocuments, data: bytes) -> list[object]:
    """Offer the same bytes as everything that comes from outside."""
    accepted: list[object] = []
    attempts: list[Callable[[Envelope], object]] = [
        trusted.accept_root,
        lambda envelope: trusted.accept_head(envelope, now=NOW_S),
        trusted.accept_grants,
        lambda envelope: trusted.accept_first_root(envelope, DocumentId.of(envelope.payload)),
    ]
    for attempt in attempts:
        try:
            accepted.append(attempt(Envelope.decode(data, max_bytes=1 << 20)))
        except ProtocolError:
            continue
    return accepted


@given(st.data())
def test_no_bytes_break_the_trust_rules_or_are_believed(data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from([ROOT_BYTES, HEAD_BYTES, GRANTS_BYTES]))
    payload = Envelope.decode(valid, max_bytes=1 << 20)
    trusted = Estate().trusted
    before = (trusted.root, trusted.head, dict(trusted.accepted_grants), trusted.newest_issued_s)
    hostile = data.draw(hostile_bytes(valid) | hostile_bytes(payload.payload))
    inside = Envelope(data.draw(mutations(payload.payload)), payload.signatures)
    for raw in (hostile, inside.encode()):
        if feed(trusted, raw):
            # Only a tail after the signatures, which nobody reads, can be believed.
            assert Envelope.decode(raw, max_bytes=1 << 20).payload == payload.payload
            return
    after = (trusted.root, trusted.head, dict(trusted.accepted_grants), trusted.newest_issued_s)
    assert after == before


@given(st.data())
def test_any_payload_that_the_roles_did_sign_raises_nothing_else(data: st.DataObject) -> None:
    """A central gone wrong signs nonsense: nodes refuse it and live."""
    trusted = Estate().trusted
    role, document_type, valid = data.draw(
        st.sampled_from(
            [
                ("root", "root", FLEET.root(2).encode()),
                ("head", "head", replace(ESTATE.head, serial=2).encode()),
                ("grants", "grants", ESTATE.grants_root.encode()),
            ]
        )
    )
    payload = data.draw(hostile_bytes(valid))
    signature = FLEET.signers[role].sign(document_type, payload)
    feed(trusted, Envelope(payload, (signature,)).encode())
