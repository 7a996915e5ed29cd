"""What the peer pump needs from whoever knows the fleet's documents: a narrow interface.

The pump carries proofs back and forth and waits; a doorkeeper makes them and judges them. Both
may ask the other side for a Root, Grants or a leaf on the way, with the `Ask` they are given.
"""

from __future__ import annotations

from typing import Protocol

from protocol.envelope import PublicKey
from protocol.facts import NodeFacts
from protocol.ids import NodeId
from protocol.messages import Answer, Hello, Prove, Request


class Ask(Protocol):
    """Sends a request to the peer and returns its answer.

    The request's own number is replaced. Raises PeerRefused, PeerLost, PeerTooSlow.
    """

    async def __call__(self, message: Request, /) -> Answer: ...


class Doorkeeper(Protocol):
    """Says hello, proves who this node is, and decides whom to believe."""

    def hello(self) -> Hello:
        """A fresh Hello; the nonce must be new each time."""
        ...

    async def prove(self, peer: Hello, ask: Ask) -> Prove:
        """This node's facts.

        Called at once, or after the peer was judged when its Hello shows a newer head: then
        there may be a newer leaf of this node to ask for.
        """
        ...

    async def judge(self, prove: Prove, *, peer: Hello, peer_key: PublicKey, ask: Ask) -> NodeFacts:
        """The peer's facts, once they are believed.

        Raises TrustError, another ProtocolError, or Refusal with the code to send.
        """
        ...

    async def answer(
        self, request: Request, node: NodeId | None, key: PublicKey | None = None
    ) -> Answer:
        """Answer GetRoot, GetGrants or GetLeaf of a peer that is not admitted yet.

        `node` is who it only says it is, `key` the one that TLS showed it to hold; both are None
        for a newcomer. Raises Refusal.
        """
        ...
