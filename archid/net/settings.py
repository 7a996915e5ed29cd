"""Times and bounds of connections: what the network code needs from the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeerSettings:
    """Of one connection. The defaults suit slow lines; tests make them shorter."""

    admission_timeout_s: float = 20.0
    """For the TLS handshake, and again for the two proofs."""
    request_timeout_s: float = 60.0
    keepalive_s: float = 20.0
    """After this long without a byte from the peer it is asked for a sign of life."""
    dead_after_s: float = 60.0
    """After this long without a byte either way the connection is given up."""
    goodbye_timeout_s: float = 2.0
    """How long a connection that is being closed waits for the peer to take the last words."""
    outbox_bytes: int = 2 * 1024 * 1024
    """Queued to be sent; whoever wants to send more waits."""
    unproven_outbox_bytes: int = 512 * 1024
    """Queued for somebody who has proven nothing: more is not read from them before it is taken.
    A proof, a leaf, a Root and a Grants root fit in at once."""


@dataclass(frozen=True)
class ListenerSettings:
    """Of accepting connections that have proven nothing yet."""

    max_unproven: int = 256
    max_unproven_per_host: int = 32
    backlog: int = 256


@dataclass(frozen=True)
class DialerSettings:
    """Of dialling again: the wait doubles from the first to the longest, less a random part."""

    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    connect_timeout_s: float = 20.0
