"""The trust rules: what is believed, and what is refused by which name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.errors import FormatError, TrustError
from protocol.head import Head
from protocol.ids import DocumentId
from protocol.trust import (
    FingerprintMismatch,
    GrantsNotAccepted,
    HeadForked,
    HeadRolledBack,
    Outcome,
    RootForked,
    RootRolledBack,
    RootUnknown,
    SignatureMissing,
    TrustedDocuments,
    WrongEpoch,
    WrongFleet,
)
from tests.unit.protocol.signed_fleet import (
    FEATURE,
    NOW_S,
    Estate,
    SignedFleet,
    Signer,
    digest,
    sign,
)

FLEET = SignedFleet()
OTHER = SignedFleet("other")
OLD_ROOT, NEW_ROOT = FLEET.signers["root"], Signer("new root")
NEW_HEAD = Signer("new head")


# Roots


def test_the_first_root_is_the_one_with_the_fingerprint() -> None:
    root = FLEET.root()
    envelope = FLEET.sign_root(root)
    trusted = TrustedDocuments()
    with pytest.raises(FingerprintMismatch):
        trusted.accept_first_root(envelope, FLEET.root(2).fingerprint)
    assert trusted.accept_first_root(envelope, root.fingerprint) == root
    assert (trusted.fleet, trusted.root, dict(trusted.roots)) == (FLEET.fleet, root, {1: envelope})
    with pytest.raises(TrustError, match="already"):
        trusted.accept_first_root(envelope, root.fingerprint)


def test_the_first_root_is_signed_by_itself_and_of_the_expected_fleet() -> None:
    root = FLEET.root()
    with pytest.raises(SignatureMissing):
        TrustedDocuments().accept_first_root(sign(root, NEW_ROOT), root.fingerprint)
    with pytest.raises(WrongFleet):
        TrustedDocuments(fleet=OTHER.fleet).accept_first_root(
            FLEET.sign_root(root), root.fingerprint
        )


def test_nothing_is_believed_without_a_root() -> None:
    estate = Estate()
    empty = TrustedDocuments()
    with pytest.raises(TrustError, match="no Root"):
        empty.accept_head(FLEET.sign_head(estate.head), now=NOW_S)
    with pytest.raises(TrustError, match="no Root"):
        empty.accept_root(FLEET.sign_root(FLEET.root(2)))
    with pytest.raises(GrantsNotAccepted):
        empty.accept_grants(FLEET.sign_grants(estate.grants_root))
    assert empty.missing_grants() == ()
    assert not empty.is_denied(FEATURE)


def test_a_chain_of_roots_with_changing_keys_is_walked() -> None:
    trusted = FLEET.trusted()
    second = FLEET.root(2, keys={"root": [NEW_ROOT]})
    third_key = Signer("third root")
    third = FLEET.root(3, keys={"root": [third_key], "head": [NEW_HEAD]})
    envelopes = [sign(second, OLD_ROOT, NEW_ROOT), sign(third, NEW_ROOT, third_key)]
    with pytest.raises(RootUnknown) as unknown:
        trusted.accept_root(envelopes[1])
    assert unknown.value.version == 3
    assert [trusted.accept_root(envelope) for envelope in envelopes] == [Outcome.NEWER] * 2
    assert [trusted.accept_root(envelope) for envelope in envelopes] == [Outcome.SAME] * 2
    assert trusted.root == third
    assert sorted(trusted.roots) == [1, 2, 3]
    # The head's key was replaced, too.
    head = replace(FLEET.head(), root_version=3)
    with pytest.raises(SignatureMissing):
        trusted.accept_head(FLEET.sign_head(head), now=NOW_S)
    assert trusted.accept_head(sign(head, NEW_HEAD), now=NOW_S) is Outcome.NEWER


@pytest.mark.parametrize("signers", [[OLD_ROOT], [NEW_ROOT], [FLEET.signers["head"]], []])
def test_a_new_root_needs_the_old_and_the_new_root_role(signers: list[Signer]) -> None:
    trusted = FLEET.trusted()
    with pytest.raises(SignatureMissing):
        trusted.accept_root(sign(FLEET.root(2, keys={"root": [NEW_ROOT]}), *signers))
    assert trusted.root is not None
    assert trusted.root.version == 1


def test_a_threshold_counts_distinct_keys() -> None:
    a, b = Signer("root a"), Signer("root b")
    root = FLEET.root(keys={"root": [a, b]}, thresholds={"root": 2})
    with pytest.raises(SignatureMissing):
        TrustedDocuments().accept_first_root(sign(root, a), root.fingerprint)
    with pytest.raises(FormatError, match="two signatures of one key"):
        sign(root, a, a)
    # An envelope that holds one key's signature twice does not get past its construction, and
    # would count once if it did.
    smuggled = sign(root, a)
    object.__setattr__(smuggled, "signatures", smuggled.signatures * 2)
    with pytest.raises(SignatureMissing):
        TrustedDocuments().accept_first_root(smuggled, root.fingerprint)
    TrustedDocuments().accept_first_root(sign(root, a, b), root.fingerprint)


def test_an_older_or_another_root_is_refused() -> None:
    trusted = FLEET.trusted()
    assert trusted.accept_root(FLEET.sign_root(FLEET.root(2, epoch=2))) is Outcome.NEWER
    with pytest.raises(RootForked):
        trusted.accept_root(FLEET.sign_root(FLEET.root(2, epoch=3)))
    with pytest.raises(RootForked):
        trusted.accept_root(FLEET.sign_root(FLEET.root(1, policy=1)))
    with pytest.raises(RootRolledBack, match="epoch"):
        trusted.accept_root(FLEET.sign_root(FLEET.root(3, epoch=1)))
    with pytest.raises(WrongFleet):
        trusted.accept_root(sign(OTHER.root(3, epoch=2), OLD_ROOT, OTHER.signers["root"]))
    with pytest.raises(RootRolledBack) as stranger:
        trusted.accept_root(sign(FLEET.root(2, epoch=5), NEW_ROOT))
    assert not isinstance(stranger.value, RootForked)  # anybody can sign as a stranger
    assert trusted.root == FLEET.root(2, epoch=2)


# Heads


def accept(trusted: TrustedDocuments, head: Head) -> Outcome:
    return trusted.accept_head(FLEET.sign_head(head), now=NOW_S)


def test_heads_are_ordered_by_epoch_and_serial() -> None:
    trusted = FLEET.trusted()
    assert accept(trusted, FLEET.head(serial=5)) is Outcome.NEWER
    assert accept(trusted, FLEET.head(serial=5)) is Outcome.SAME
    with pytest.raises(HeadRolledBack):
        accept(trusted, FLEET.head(serial=4))
    assert accept(trusted, FLEET.head(serial=7)) is Outcome.NEWER
    assert trusted.head == FLEET.head(serial=7)
    assert trusted.head_accepted_at == NOW_S


def test_of_two_heads_with_the_same_numbers_the_first_stays() -> None:
    trusted = FLEET.trusted()
    first = FLEET.head(serial=5)
    accept(trusted, first)
    with pytest.raises(HeadForked):
        accept(trusted, replace(first, expires_s=first.expires_s + 1))
    assert trusted.head == first


def test_the_same_head_with_other_signatures_is_the_same() -> None:
    a, b = Signer("head a"), Signer("head b")
    root = FLEET.root(keys={"head": [a, b]})
    trusted = FLEET.trusted(root)
    head = FLEET.head()
    assert trusted.accept_head(sign(head, a), now=NOW_S) is Outcome.NEWER
    assert trusted.accept_head(sign(head, b), now=NOW_S) is Outcome.SAME


@pytest.mark.parametrize("role", ["root", "grants", "publish", "ca"])
def test_only_the_head_role_signs_heads(role: str) -> None:
    trusted = FLEET.trusted()
    with pytest.raises(SignatureMissing):
        trusted.accept_head(sign(FLEET.head(), FLEET.signers[role]), now=NOW_S)
    assert trusted.head is None


def test_a_head_needs_its_threshold() -> None:
    a, b = Signer("head a"), Signer("head b")
    trusted = FLEET.trusted(FLEET.root(keys={"head": [a, b]}, thresholds={"head": 2}))
    with pytest.raises(SignatureMissing, match="1 keys of its role where 2"):
        trusted.accept_head(sign(FLEET.head(), a, FLEET.signers["head"]), now=NOW_S)
    assert trusted.accept_head(sign(FLEET.head(), a, b), now=NOW_S) is Outcome.NEWER


def test_a_signature_over_a_head_does_not_sign_grants_nor_a_changed_head() -> None:
    trusted = FLEET.trusted()
    envelope = FLEET.sign_head(FLEET.head())
    changed = replace(envelope, payload=FLEET.head(serial=2).encode())
    with pytest.raises(SignatureMissing):
        trusted.accept_head(changed, now=NOW_S)


def test_a_head_of_another_fleet_is_refused_even_with_the_same_keys() -> None:
    trusted = FLEET.trusted()
    with pytest.raises(WrongFleet):
        trusted.accept_head(FLEET.sign_head(OTHER.head()), now=NOW_S)
    with pytest.raises(SignatureMissing):
        trusted.accept_head(OTHER.sign_head(OTHER.head()), now=NOW_S)


def test_a_head_under_a_newer_root_asks_for_it() -> None:
    trusted = FLEET.trusted()
    head = replace(FLEET.head(serial=2), root_version=4)
    for envelope in (FLEET.sign_head(head), sign(head, NEW_HEAD)):
        with pytest.raises(RootUnknown) as unknown:
            trusted.accept_head(envelope, now=NOW_S)
        assert unknown.value.version == 4
    assert trusted.head is None


def test_a_head_made_under_an_older_root_is_fine_if_its_key_still_counts() -> None:
    trusted = FLEET.trusted()
    trusted.accept_root(FLEET.sign_root(FLEET.root(2)))
    assert accept(trusted, FLEET.head()) is Outcome.NEWER


def test_a_head_of_another_epoch_than_the_root_is_refused() -> None:
    trusted = FLEET.trusted(FLEET.root(epoch=2))
    for epoch in (1, 3):
        with pytest.raises(WrongEpoch):
            accept(trusted, FLEET.head(epoch=epoch, serial=100))
    assert accept(trusted, FLEET.head(epoch=2, serial=1)) is Outcome.NEWER


def test_a_new_epoch_recovers_from_serials_that_were_run_up_to_the_end() -> None:
    trusted = FLEET.trusted()
    last = FLEET.head(serial=(1 << 53) - 1)
    last = replace(last, issued_s=NOW_S, expires_s=NOW_S + 10)
    accept(trusted, last)
    trusted.accept_root(FLEET.sign_root(FLEET.root(2, epoch=2)))
    assert trusted.head is not None  # what is granted goes on until the new epoch has a head
    with pytest.raises(WrongEpoch):
        accept(trusted, replace(last, expires_s=1))
    assert accept(trusted, FLEET.head(epoch=2, serial=1)) is Outcome.NEWER


def test_nothing_below_the_floor_is_accepted_even_when_no_head_is_held() -> None:
    root = FLEET.root(epoch=2)
    trusted = TrustedDocuments(floor=(2, 10))
    trusted.accept_first_root(FLEET.sign_root(root), root.fingerprint)
    with pytest.raises(HeadRolledBack, match="floor"):
        accept(trusted, FLEET.head(epoch=2, serial=9))
    assert accept(trusted, FLEET.head(epoch=2, serial=10)) is Outcome.NEWER


def test_an_expired_head_is_accepted_and_known_to_be_expired() -> None:
    trusted = FLEET.trusted()
    assert trusted.head_expired(NOW_S)
    head = FLEET.head()
    assert trusted.accept_head(FLEET.sign_head(head), now=head.expires_s + 10) is Outcome.NEWER
    assert trusted.head_expired(head.expires_s)
    assert not trusted.head_expired(head.expires_s - 1)


def test_a_clock_that_is_behind_is_noticed_and_one_ahead_is_not() -> None:
    trusted = FLEET.trusted()
    accept(trusted, replace(FLEET.head(), issued_s=NOW_S + 3600))
    assert trusted.newest_issued_s == NOW_S + 3600
    assert trusted.clock_offset_s(NOW_S) == 3600
    assert trusted.clock_offset_s(NOW_S + 7200) is None
    accept(trusted, replace(FLEET.head(serial=2), issued_s=NOW_S))
    assert trusted.newest_issued_s == NOW_S + 3600


def test_a_new_epoch_forgets_the_dates_of_the_old_one() -> None:
    trusted = FLEET.trusted()
    accept(trusted, replace(FLEET.head(), issued_s=NOW_S + 10**9))
    root = FLEET.root(2, epoch=2)
    trusted.accept_root(FLEET.sign_root(root))
    assert trusted.newest_issued_s == root.issued_s


def test_refused_documents_leave_no_date_behind() -> None:
    trusted = FLEET.trusted()
    accept(trusted, FLEET.head(serial=5))
    before = trusted.newest_issued_s
    with pytest.raises(HeadRolledBack):
        accept(trusted, replace(FLEET.head(serial=4), issued_s=NOW_S + 10**8))
    assert trusted.newest_issued_s == before


# Grants


def test_grants_are_accepted_when_the_head_names_them() -> None:
    estate = Estate()
    _, other = FLEET.grants({}, issued_s=NOW_S + 5)
    with pytest.raises(GrantsNotAccepted) as refused:
        estate.trusted.accept_grants(FLEET.sign_grants(other))
    assert not refused.value.named
    estate.next_head(grants_roots=(other.id, estate.grants_root.id))
    assert estate.trusted.missing_grants() == (other.id,)
    assert estate.trusted.accept_grants(FLEET.sign_grants(other)) == other
    assert estate.trusted.missing_grants() == ()
    assert set(estate.trusted.accepted_grants) == {other.id, estate.grants_root.id}
    assert estate.trusted.grants_envelope(other.id) == FLEET.sign_grants(other)
    estate.next_head(grants_roots=(other.id,))
    assert set(estate.trusted.accepted_grants) == {other.id}
    assert estate.trusted.grants_envelope(estate.grants_root.id) is None


@pytest.mark.parametrize("role", ["root", "head", "publish"])
def test_only_the_grants_role_signs_grants(role: str) -> None:
    trusted = FLEET.trusted()
    _, grants = FLEET.grants({})
    accept(trusted, FLEET.head(grants.id))
    with pytest.raises(SignatureMissing):
        trusted.accept_grants(sign(grants, FLEET.signers[role]))
    assert trusted.accept_grants(FLEET.sign_grants(grants)) == grants


def test_grants_of_another_fleet_or_epoch_are_refused_even_when_named() -> None:
    trusted = FLEET.trusted()
    _, foreign = OTHER.grants({})
    _, later = FLEET.grants({}, epoch=2)
    accept(trusted, FLEET.head(foreign.id, later.id))
    with pytest.raises(WrongFleet):
        trusted.accept_grants(FLEET.sign_grants(foreign))
    with pytest.raises(WrongEpoch):
        trusted.accept_grants(FLEET.sign_grants(later))


def test_grants_from_before_their_key_was_replaced_stay_good_in_their_epoch_only() -> None:
    _, grants = FLEET.grants({})
    new_grants_key = Signer("new grants")
    trusted = FLEET.trusted()
    trusted.accept_root(FLEET.sign_root(FLEET.root(2, keys={"grants": [new_grants_key]})))
    accept(trusted, FLEET.head(grants.id))
    assert trusted.accept_grants(FLEET.sign_grants(grants)) == grants

    _, later = FLEET.grants({}, epoch=2)
    trusted.accept_root(FLEET.sign_root(FLEET.root(3, epoch=2, keys={"grants": [new_grants_key]})))
    accept(trusted, FLEET.head(later.id, epoch=2))
    with pytest.raises(SignatureMissing):
        trusted.accept_grants(FLEET.sign_grants(later))
    assert trusted.accept_grants(sign(later, new_grants_key)) == later


# Coming back from disk


def test_what_was_believed_is_believed_again() -> None:
    estate = Estate()
    # Since the head came, its key was replaced and a new epoch begun that has no head yet.
    roots = [
        FLEET.sign_root(FLEET.root()),
        FLEET.sign_root(FLEET.root(2, keys={"head": [NEW_HEAD]})),
        FLEET.sign_root(FLEET.root(3, epoch=2, keys={"head": [NEW_HEAD]})),
    ]
    again = TrustedDocuments.restore(
        roots,
        FLEET.sign_head(estate.head),
        [FLEET.sign_grants(estate.grants_root)],
        fingerprint=FLEET.root().fingerprint,
        floor=(1, 1),
        now=NOW_S,
    )
    assert again.head == estate.head
    assert again.root == FLEET.root(3, epoch=2, keys={"head": [NEW_HEAD]})
    assert set(again.accepted_grants) == {estate.grants_root.id}


def test_what_was_kept_is_not_believed_blindly() -> None:
    estate = Estate()
    root, head = FLEET.sign_root(FLEET.root()), FLEET.sign_head(estate.head)
    fingerprint = FLEET.root().fingerprint
    with pytest.raises(HeadRolledBack):
        TrustedDocuments.restore([root], head, fingerprint=fingerprint, floor=(1, 2), now=NOW_S)
    with pytest.raises(SignatureMissing):
        TrustedDocuments.restore(
            [root], sign(estate.head, NEW_HEAD), fingerprint=fingerprint, now=NOW_S
        )
    with pytest.raises(FingerprintMismatch):
        TrustedDocuments.restore([root], head, fingerprint=DocumentId(digest("x")), now=NOW_S)
    with pytest.raises(TrustError, match="no Root"):
        TrustedDocuments.restore([], head, fingerprint=fingerprint, now=NOW_S)
