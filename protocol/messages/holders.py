"""Messages of the feature `holders`: who else holds or fetches a version, and where it is.

Central and REPOs know it from states and from who asks them; whoever may read the version may be
told. An answer proves nothing: who is dialled proves who it is and says itself what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from protocol.canonical import Fields
from protocol.features import HOLDERS
from protocol.ids import ManifestId, NodeId
from protocol.limits import KIB, MAX_ADDRESS_BYTES, MAX_ADDRESSES, MAX_HOLDERS_TOLD
from protocol.messages.session import SMALL
from protocol.messages.wire import REQUEST, Answer, Codec, Request, digest, record, sequence, text


class Holder(NamedTuple):
    """A node that holds a version, or a part of it, and the addresses that it has signed."""

    node: NodeId
    addresses: tuple[str, ...]


def _holder_codec() -> Codec:
    plain = record(node=digest(NodeId), addresses=sequence(text(MAX_ADDRESS_BYTES), MAX_ADDRESSES))

    def take(fields: Fields, name: str) -> Holder:
        return Holder(*plain.take(fields, name))

    return Codec(plain.text, plain.put, take)


@dataclass(frozen=True, slots=True)
class HoldersAnswer(Answer):
    """Some of the other nodes that hold or fetch the version."""

    TYPE: ClassVar[int] = 53
    MAX_BYTES: ClassVar[int] = 96 * KIB
    FEATURE: ClassVar[str] = HOLDERS
    WIRE: ClassVar[Mapping[str, Codec]] = {
        "request": REQUEST,
        "holders": sequence(_holder_codec(), MAX_HOLDERS_TOLD),
    }

    request: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class GetHolders(Request):
    """Asks which other nodes hold or fetch a version, and where they are."""

    TYPE: ClassVar[int] = 52
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = HOLDERS
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "manifest": digest(ManifestId)}
    ANSWER = HoldersAnswer

    request: int
    manifest: ManifestId
