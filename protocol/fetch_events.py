"""What a fetch plan is told (events, past tense) and what it wants done (effects, imperative)."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from protocol.messages.codes import ErrorCode

PeerName: TypeAlias = bytes
"""How the owner calls a peer; a NodeId will do. Ties are broken by its order."""


class SpanKey(NamedTuple):
    """Span `n` of the manifest's piece number `piece_index`."""

    piece_index: int
    n: int


class Completeness(Enum):
    """Stands for the have-map of a peer that holds everything."""

    COMPLETE = "complete"


Wanted: TypeAlias = tuple[tuple[int, bytes], ...]
"""Spans as bitmaps by piece index, ascending, as they go onto the wire."""

COMPLETE: Final = Completeness.COMPLETE
Have: TypeAlias = Completeness | AbstractSet[SpanKey]


class DropReason(Enum):
    """Why a plan wants no more of a peer."""

    REFUSES = "it refuses this manifest"
    CORRUPTS = "it keeps sending wrong bytes"
    SILENT = "it has sent nothing for too long"


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A peer can be asked and holds `have`; told again, it replaces what was known."""

    peer: PeerName
    have: Have
    picks: bool = False
    """Whether it can be asked for any of several spans (the feature `swarm`)."""
    near: bool = False
    """Whether it stands at this node's site, so that asking it costs the site's line nothing."""


@dataclass(frozen=True, slots=True)
class PeerHas:
    """A peer holds one more span."""

    peer: PeerName
    span: SpanKey


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A peer is gone, and with it whatever it was asked."""

    peer: PeerName


@dataclass(frozen=True, slots=True)
class SpanReceived:
    """A span came from a peer and is verified; or, with peer None, was found locally."""

    peer: PeerName | None
    span: SpanKey


@dataclass(frozen=True, slots=True)
class SpanCorrupt:
    """A peer sent bytes that are not the span."""

    peer: PeerName
    span: SpanKey


@dataclass(frozen=True, slots=True)
class SpanRefused:
    """A peer refused a span."""

    peer: PeerName
    span: SpanKey
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class SpanPicked:
    """A peer has picked this span from an offer; its bytes follow."""

    peer: PeerName
    offer: int
    span: SpanKey


@dataclass(frozen=True, slots=True)
class OfferRefused:
    """A peer picked nothing from an offer."""

    peer: PeerName
    offer: int
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class Paused:
    """Another version has the line for now, or no longer: nothing new is to be asked meanwhile."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; nothing else happened."""


OneEvent: TypeAlias = (
    PeerJoined
    | PeerHas
    | PeerLost
    | SpanReceived
    | SpanCorrupt
    | SpanRefused
    | SpanPicked
    | OfferRefused
    | Paused
    | Tick
)


@dataclass(frozen=True, slots=True)
class Together:
    """Several things have happened, one after the other, before anything could be done about the
    first: choices are made once, with all of them known."""

    events: tuple[OneEvent, ...]


FetchEvent: TypeAlias = OneEvent | Together


@dataclass(frozen=True, slots=True)
class AskSpan:
    """Send the request for this span to this peer."""

    peer: PeerName
    span: SpanKey


@dataclass(frozen=True, slots=True)
class CancelSpan:
    """The span has come from elsewhere: cancel the request at this peer."""

    peer: PeerName
    span: SpanKey


@dataclass(frozen=True, slots=True)
class AskAny:
    """Ask this peer for any of these spans (bitmaps by piece index), under the offer's number."""

    peer: PeerName
    offer: int
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class UnwantSpan:
    """This peer is not to pick this span from what it was offered so far."""

    peer: PeerName
    span: SpanKey


@dataclass(frozen=True, slots=True)
class CancelOffer:
    """Cancel the request for an offer: it is too old, or what was picked is held already."""

    peer: PeerName
    offer: int


@dataclass(frozen=True, slots=True)
class DropPeer:
    """The plan has forgotten this peer and all it was asked; report why."""

    peer: PeerName
    reason: DropReason


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Give a Tick at this time; replaces the wake before it."""

    at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Every span is held. Said once."""


FetchEffect: TypeAlias = (
    AskSpan | CancelSpan | AskAny | UnwantSpan | CancelOffer | DropPeer | WakeAt | Finished
)
