"""Messages that fetch trust documents: Roots, Heads, Grants, leaves and paged lists.

They carry encoded documents as byte strings and never look inside: verifying is the business of
`protocol.trust`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from protocol.ids import DocumentId, ListId, NodeId, PageId
from protocol.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_GRANTS_ROOT_BYTES,
    MAX_HEAD_BYTES,
    MAX_PAGE_BYTES,
    MAX_ROOT_BYTES,
    MAX_SERIAL,
    MAX_TYPE_BYTES,
)
from protocol.messages.session import SMALL
from protocol.messages.wire import REQUEST, Answer, Codec, Request, blob, digest, number, text


@dataclass(frozen=True, slots=True)
class RootDocument(Answer):
    """One Root in its envelope."""

    TYPE: ClassVar[int] = 17
    MAX_BYTES: ClassVar[int] = MAX_ROOT_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "envelope": blob(MAX_ROOT_BYTES)}

    request: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class GetRoot(Request):
    """Asks for the Root of this version."""

    TYPE: ClassVar[int] = 16
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "version": number(1, MAX_SERIAL)}
    ANSWER = RootDocument

    request: int
    version: int


@dataclass(frozen=True, slots=True)
class HeadAnswer(Answer):
    """The newest Head held and the Grants root that it names first."""

    TYPE: ClassVar[int] = 19
    MAX_BYTES: ClassVar[int] = MAX_HEAD_BYTES + MAX_GRANTS_ROOT_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "head": blob(MAX_HEAD_BYTES),
        "grants": blob(MAX_GRANTS_ROOT_BYTES),
    }

    request: int
    head: bytes
    grants: bytes


@dataclass(frozen=True, slots=True)
class GetHead(Request):
    """Asks for the newest Head held."""

    TYPE: ClassVar[int] = 18
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST}
    ANSWER = HeadAnswer

    request: int


@dataclass(frozen=True, slots=True)
class GrantsAnswer(Answer):
    """One Grants root in its envelope."""

    TYPE: ClassVar[int] = 21
    MAX_BYTES: ClassVar[int] = MAX_GRANTS_ROOT_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "envelope": blob(MAX_GRANTS_ROOT_BYTES),
    }

    request: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class GetGrants(Request):
    """Asks for the Grants root with this id."""

    TYPE: ClassVar[int] = 20
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "grants_root": digest(DocumentId)}
    ANSWER = GrantsAnswer

    request: int
    grants_root: DocumentId


@dataclass(frozen=True, slots=True)
class LeafAnswer(Answer):
    """A node's whole leaf with its path."""

    TYPE: ClassVar[int] = 23
    MAX_BYTES: ClassVar[int] = MAX_DOCUMENT_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "leaf": blob(MAX_DOCUMENT_BYTES)}

    request: int
    leaf: bytes


@dataclass(frozen=True, slots=True)
class GetLeaf(Request):
    """Asks for the leaf of `node` under a Grants root.

    Before it is admitted, a node may ask for its own leaf only: one that was away for long may
    hold no proof that is still accepted.
    """

    TYPE: ClassVar[int] = 22
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "node": digest(NodeId),
        "grants_root": digest(DocumentId),
    }
    ANSWER = LeafAnswer

    request: int
    node: NodeId
    grants_root: DocumentId


@dataclass(frozen=True, slots=True)
class ListAnswer(Answer):
    """The index of a paged list."""

    TYPE: ClassVar[int] = 25
    MAX_BYTES: ClassVar[int] = MAX_DOCUMENT_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "index": blob(MAX_DOCUMENT_BYTES)}

    request: int
    index: bytes


@dataclass(frozen=True, slots=True)
class GetList(Request):
    """Asks for the index of a paged list (Catalogue, Roster, Grants index)."""

    TYPE: ClassVar[int] = 24
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "list_type": text(MAX_TYPE_BYTES),
        "list_id": digest(ListId),
    }
    ANSWER = ListAnswer

    request: int
    list_type: str
    list_id: ListId


@dataclass(frozen=True, slots=True)
class PageAnswer(Answer):
    """One page of a paged list."""

    TYPE: ClassVar[int] = 27
    MAX_BYTES: ClassVar[int] = MAX_PAGE_BYTES + SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "page": blob(MAX_PAGE_BYTES)}

    request: int
    page: bytes


@dataclass(frozen=True, slots=True)
class GetPage(Request):
    """Asks for one page of a paged list."""

    TYPE: ClassVar[int] = 26
    MAX_BYTES: ClassVar[int] = SMALL
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "list_type": text(MAX_TYPE_BYTES),
        "list_id": digest(ListId),
        "page_id": digest(PageId),
    }
    ANSWER = PageAnswer

    request: int
    list_type: str
    list_id: ListId
    page_id: PageId
