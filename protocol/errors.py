"""What can be wrong with bytes from outside.

`FormatError` means the bytes are not what the format says, `LimitExceeded` that they claim more
than a limit allows, `TrustError` that they are well formed but not to be believed. All are
`ProtocolError`s; none carries a traceback to a user, so messages are whole sentences without a
full stop and name what was wrong.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Something from outside breaks the protocol."""


class FormatError(ProtocolError):
    """The bytes are not in the format that SPEC.md describes."""


class LimitExceeded(ProtocolError):
    """A size or a count from outside is over its limit."""


class TrustError(ProtocolError):
    """Well formed, but a signature, a proof or an order of versions does not hold."""
