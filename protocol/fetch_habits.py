"""How a fetch plan treats its peers, in numbers and codes; SPEC.md chapter 10 recommends them."""

from __future__ import annotations

from typing import Final

from protocol.messages.codes import ErrorCode

WINDOW_SPANS: Final = 4
WINDOW_BYTES: Final = 8 * 1024 * 1024
OFFERS: Final = 4
"""Open offers at a peer that picks: they commit to nothing, so they may be as many as it takes to
keep a long line full. Partial holders share them, with one each at the least: what several hold
may be picked by two of them before they are told."""
OFFER_S: Final = 60.0
"""An offer that nothing was picked from for so long is made anew, with what is missing by then."""
MOST_OPEN: Final = 64
"""Requests at all peers together, above which no peer is asked for more than it takes at least:
what comes at once has to be held until it is written."""
MAX_CORRUPT: Final = 3
"""Wrong spans after which a peer is dropped."""

OUT_CODES: Final = frozenset(
    {ErrorCode.NOT_ENTITLED, ErrorCode.DENIED, ErrorCode.UNKNOWN_MANIFEST, ErrorCode.BAD_PROOF}
)
"""Refusals that concern the whole manifest: the peer is out."""
PATIENCE_CODES: Final = frozenset(
    {ErrorCode.BUSY, ErrorCode.NOT_READY, ErrorCode.LIMIT_EXCEEDED, ErrorCode.INTERNAL}
)
"""Refusals that may be otherwise later: the peer is left alone for a while."""
