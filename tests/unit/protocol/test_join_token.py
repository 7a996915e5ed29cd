"""The text of a joining token: survives copying, and a typo is a clear error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import Value, pack
from protocol.errors import FormatError, LimitExceeded
from protocol.ids import DocumentId, NodeId
from protocol.join_token import PREFIX, JoinToken, _checksum

TOKEN = JoinToken(
    addresses=("central.example:4777", "[2001:db8::1]:4777"),
    central=NodeId.of(b"central"),
    fingerprint=DocumentId.of(b"root"),
    token_id=bytes(range(16)),
    secret=bytes(range(32)),
    fleet_name="Côté salle",
    role="ice",
    expires_s=1_800_000_000,
)


def test_a_token_reads_back_as_it_was_written() -> None:
    assert JoinToken.decode(TOKEN.encode()) == TOKEN
    assert TOKEN.encode().startswith("archid-join-")


def test_line_breaks_and_capitals_do_not_matter() -> None:
    text = TOKEN.encode()
    wrapped = "  " + text[:40] + "\r\n" + text[40:].upper() + "\n"
    assert JoinToken.decode(wrapped) == TOKEN


@given(st.data())
def test_any_single_wrong_character_is_noticed(data: st.DataObject) -> None:
    text = TOKEN.encode()
    position = data.draw(st.integers(len(PREFIX), len(text) - 1))
    wrong = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
    if wrong != text[position]:
        with pytest.raises(FormatError, match="cut or mistyped"):
            JoinToken.decode(text[:position] + wrong + text[position + 1 :])


@given(st.text(max_size=300))
def test_any_text_is_a_token_or_a_format_error(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(FormatError):
            JoinToken.decode(candidate)


def test_a_cut_token_is_noticed() -> None:
    with pytest.raises(FormatError, match="cut or mistyped"):
        JoinToken.decode(TOKEN.encode()[:-3])


def test_the_secret_is_neither_shown_nor_repeated_in_errors() -> None:
    assert repr(TOKEN.secret) not in repr(TOKEN)
    with pytest.raises(FormatError) as caught:
        JoinToken.decode(TOKEN.encode() + "a")
    assert TOKEN.encode()[20:40] not in str(caught.value)


def test_a_token_without_addresses_or_with_a_short_secret_cannot_be_made() -> None:
    with pytest.raises(LimitExceeded):
        replace(TOKEN, addresses=())
    with pytest.raises(FormatError):
        replace(TOKEN, secret=b"short")


def test_fields_of_a_newer_version_are_ignored() -> None:
    import base64

    fields: list[Value] = [
        "join token",
        1,
        ["host:1"],
        TOKEN.central,
        TOKEN.fingerprint,
        TOKEN.token_id,
        TOKEN.secret,
        "fleet",
        "ice",
        5,
        "new",
    ]
    payload = pack(fields)
    text = base64.b32encode(payload + _checksum(payload)).decode().rstrip("=").lower()
    assert JoinToken.decode(PREFIX + text).expires_s == 5
