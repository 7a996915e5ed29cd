"""What two Hellos say together: whether the two sides can talk, and how (SPEC.md 8.2)."""

from __future__ import annotations

from protocol.connection_states import Side
from protocol.errors import FormatError, ProtocolError
from protocol.messages import ErrorCode, Hello


class CannotTalk(ProtocolError):
    """The two sides do not fit; `code` says why, for the Goodbye."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def negotiate(ours: Hello, theirs: Hello, *, side: Side, joining: bool) -> int:
    """The version that both speak. Raises CannotTalk and FormatError."""
    if theirs.min_version > theirs.max_version:
        raise FormatError("Hello: min_version is greater than max_version")
    version = min(ours.max_version, theirs.max_version)
    if version < max(ours.min_version, theirs.min_version):
        raise CannotTalk(
            ErrorCode.VERSION_MISMATCH,
            f"this side speaks versions {ours.min_version} to {ours.max_version}, the other"
            f" {theirs.min_version} to {theirs.max_version}",
        )
    client, server = (ours, theirs) if side is Side.CLIENT else (theirs, ours)
    newcomer = joining and client.fleet is None
    if server.fleet is None or (client.fleet != server.fleet and not newcomer):
        raise CannotTalk(ErrorCode.WRONG_FLEET, "the two sides belong to different fleets")
    if theirs.node is None and not (joining and theirs is client):
        raise FormatError("Hello names no node")
    return version
