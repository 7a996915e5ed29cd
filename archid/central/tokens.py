"""Joining tokens: made for one node, one place and a while, used once.

A token's text (see `protocol.join_token`) is shown once, to whoever asked for it; the database
keeps a digest of its secret. Redeeming happens inside one writing transaction, so that of two
joiners with one token one wins; the one that won may ask again with the same key, because its
answer may have been lost on the way.
"""

from __future__ import annotations

import hmac
import os
import re
from dataclasses import dataclass
from typing import Final, Literal

import sqlalchemy as sa
from blake3 import blake3
from sqlalchemy.engine import Connection, Row

from archid.central.estate import (
    Node,
    Place,
    add_node,
    check_name_is_free,
    check_node_name,
    node_by_id,
    present_nodes,
)
from archid.central.tables import tokens
from archid.errors import Conflict, Denied, UsageError
from protocol.envelope import PublicKey
from protocol.ids import NodeId

TOKEN_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
MAX_LIFETIME_S: Final = 366 * 86400
_DIGEST_CONTEXT: Final = "archid v1 joining token secret"
_NO_SUCH_TOKEN: Final = bytes(32)
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9]+")

TokenState = Literal["open", "used", "expired"]


class TokenRefused(Denied):
    """The token does not let this node in; `code` is what the joiner is told."""


@dataclass(frozen=True)
class TokenSecret:
    """What only the token's text carries."""

    token: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"TokenSecret({self.token.hex()})"


@dataclass(frozen=True)
class TokenRow:
    """A token as the list shows it."""

    token: bytes
    place: Place
    name: str
    created_s: int
    expires_s: int
    state: TokenState
    used_s: int | None
    node: NodeId | None

    def to_json(self) -> dict[str, object]:
        """As the control socket and ``--json`` show it."""
        return {
            "id": self.token.hex(),
            "role": self.place.role,
            "name": self.name,
            "site": self.place.site,
            "room": self.place.room,
            "server_kind": self.place.server_kind,
            "created_s": self.created_s,
            "expires_s": self.expires_s,
            "state": self.state,
            "used_s": self.used_s,
            "node": None if self.node is None else self.node.hex(),
        }


@dataclass(frozen=True)
class NewToken:
    """A token that was just made; `text` is shown once and kept nowhere."""

    text: str
    row: TokenRow
    addresses: tuple[str, ...]

    def __repr__(self) -> str:
        return f"NewToken({self.row.token.hex()})"

    def to_json(self) -> dict[str, object]:
        """As the control socket answers ``token.create``."""
        shown = self.row.to_json()
        kept = ("id", "role", "name", "site", "room", "server_kind", "expires_s")
        return {
            "token": self.text,
            "addresses": list(self.addresses),
            **{key: shown[key] for key in kept},
        }


@dataclass(frozen=True)
class Admission:
    """What a newcomer is given: the fields of `protocol.messages.JoinAccepted`, and its node."""

    node: Node
    certificate: bytes
    roots: tuple[bytes, ...]
    head: bytes
    grants: bytes
    leaf: bytes


def create_token(
    connection: Connection,
    *,
    place: Place,
    name: str,
    lifetime_s: int,
    by: str,
    now_s: int,
) -> tuple[TokenSecret, TokenRow]:
    """Make a token for a REPO or an ICE server; an empty `name` lets the joiner choose.

    Raises UsageError for a place that makes no sense, Conflict when the name is taken.
    """
    place.check()
    if place.role == "central":
        raise UsageError("A fleet has one central, which archid init makes")
    if not 1 <= lifetime_s <= MAX_LIFETIME_S:
        raise UsageError("A token lives for at least a second and at most 366 days")
    if name:
        check_node_name(name)
        check_name_is_free(connection, name)
    secret = TokenSecret(os.urandom(TOKEN_ID_BYTES), os.urandom(SECRET_BYTES))
    connection.execute(
        tokens.insert().values(
            token=secret.token,
            secret_digest=_digest(secret.token, secret.secret),
            role=place.role,
            site=place.site,
            room=place.room,
            server_kind=place.server_kind,
            name=name,
            created_s=now_s,
            created_by=by,
            expires_s=now_s + lifetime_s,
        )
    )
    row = TokenRow(secret.token, place, name, now_s, now_s + lifetime_s, "open", None, None)
    return secret, row


def list_tokens(connection: Connection, *, now_s: int) -> list[TokenRow]:
    """Every token ever made, newest first, without its secret."""
    query = sa.select(tokens).order_by(tokens.c.created_s.desc(), tokens.c.token)
    return [_row(row, now_s) for row in connection.execute(query)]


def redeem_token(
    connection: Connection,
    *,
    token: bytes,
    secret: bytes,
    key: PublicKey,
    name: str,
    now_s: int,
    role: str | None = None,
) -> tuple[Node, bool]:
    """Let the holder of `key` in; returns its node and whether it is new.

    `name` is what the newcomer would like to be called, which counts if the token names nobody
    and the name is free; `role` is what it is configured as, if it said so. That it holds the key
    has been checked by whoever calls. Raises TokenRefused (token_invalid, token_expired,
    token_used, token_wrong_role) and what `add_node` raises.
    """
    found = connection.execute(sa.select(tokens).where(tokens.c.token == token)).one_or_none()
    kept = _NO_SUCH_TOKEN if found is None else found.secret_digest
    if not hmac.compare_digest(_digest(token, secret), kept) or found is None:
        raise TokenRefused(
            "This token was not made by this central",
            remedy="Ask for a new one and copy it whole",
            code="token_invalid",
        )
    if role is not None and role != found.role:
        raise TokenRefused(
            f"This token is for a node of the role {found.role}, not {role}",
            remedy="Ask for a token for this node",
            code="token_wrong_role",
        )
    if found.used_by is not None:
        return _repeated(connection, found, key), False
    if found.voided_s is not None or now_s >= found.expires_s:
        raise TokenRefused(
            "This token has expired" if found.voided_s is None else "This token was called back",
            remedy="Ask for a new one",
            code="token_expired",
        )
    place = Place(found.role, found.site, found.room, found.server_kind)
    node = add_node(
        connection,
        name=found.name or _usable(connection, name) or _name_of_place(place, NodeId.of(key)),
        place=place,
        key=key,
        now_s=now_s,
    )
    connection.execute(
        tokens.update().where(tokens.c.token == token).values(used_s=now_s, used_by=node.node)
    )
    return node, True


def member_with(connection: Connection, key: PublicKey) -> Node:
    """The node with this key, which asks for a certificate by the CA of today.

    That it holds the key has been checked by whoever calls. Raises TokenRefused.
    """
    for node in present_nodes(connection):
        if node.key == key:
            return node
    raise TokenRefused(
        "No node of this fleet has this key",
        remedy="Join with a new token",
        code="token_invalid",
    )


def void_tokens(connection: Connection, *, now_s: int) -> int:
    """Call back every token that is still open; returns how many.

    After central came back from a backup nobody can say which of them have been used since.
    """
    still_open = sa.and_(tokens.c.used_by.is_(None), tokens.c.voided_s.is_(None))
    return connection.execute(
        tokens.update().where(still_open, tokens.c.expires_s > now_s).values(voided_s=now_s)
    ).rowcount


def _repeated(connection: Connection, found: Row[tuple[object, ...]], key: PublicKey) -> Node:
    node = node_by_id(connection, found.used_by)
    if node is None or node.key != key or node.state == "left":
        raise TokenRefused(
            "This token has been used already",
            remedy="Ask for a new one; each token lets one node in, once",
            code="token_used",
        )
    return node


def _digest(token: bytes, secret: bytes) -> bytes:
    content = len(token).to_bytes(4) + token + secret
    return blake3(content, derive_key_context=_DIGEST_CONTEXT).digest()


def _usable(connection: Connection, name: str) -> str:
    """The name that a machine asks for, or "" if it cannot have it: no reason not to let it in."""
    try:
        check_node_name(name)
        check_name_is_free(connection, name)
    except (UsageError, Conflict):
        return ""
    return name


def _name_of_place(place: Place, node: NodeId) -> str:
    """A name for a newcomer that neither the token nor the machine had one for."""
    parts = [place.site, place.room, place.server_kind] if place.role == "ice" else [place.role]
    words = [_NOT_IN_A_NAME.sub("-", part).strip("-").lower() for part in parts]
    return f"{'-'.join(word for word in words if word)[:54]}-{node.hex()[:6]}".lstrip("-")


def _row(row: Row[tuple[object, ...]], now_s: int) -> TokenRow:
    state: TokenState = "open"
    if row.used_by is not None:
        state = "used"
    elif row.voided_s is not None or row.expires_s <= now_s:
        state = "expired"
    return TokenRow(
        token=bytes(row.token),
        place=Place(row.role, row.site, row.room, row.server_kind),
        name=row.name,
        created_s=row.created_s,
        expires_s=row.expires_s,
        state=state,
        used_s=row.used_s,
        node=row.used_by,
    )
