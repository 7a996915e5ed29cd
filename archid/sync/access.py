"""What one peer may read over its connection.

Central and REPOs may read everything. Anyone else shows one entry of its leaf for each manifest;
what was shown is remembered for this connection. The peer itself and all that it has shown are
judged again by whoever asks first after the head has changed, so that a revocation reaches
connections that are already open before anything else is read for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.envelope import PublicKey
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument, Proof
from protocol.head import Head
from protocol.ids import ManifestId, NodeId
from protocol.messages import ErrorCode
from protocol.refusals import FactsMismatch, GrantsNotAccepted, NodeDenied, NotEntitled
from protocol.root import Root
from protocol.trust import TrustedDocuments

MAX_ENTITLED: Final = 4096
"""Manifests one peer may have shown entries for at a time; more than any leaf needs at once."""


class Access:
    """The entitlements of one connection.

    `proof` is what showed the peer's `facts`, `server` are those of this node. `leaf_of` looks
    for a newer leaf of the peer that is held here; it is asked when no head stands behind that
    proof any more.
    """

    def __init__(
        self,
        trust: TrustedDocuments,
        facts: NodeFacts,
        key: PublicKey,
        server: NodeFacts,
        *,
        proof: Proof,
        leaf_of: Callable[[NodeId], LeafDocument | None],
    ) -> None:
        self._trust = trust
        self._facts = facts
        self._key = key
        self._server = server
        self._proof = proof
        self._leaf_of = leaf_of
        self._proofs: dict[ManifestId, Proof] = {}
        self._judged: tuple[Root | None, Head | None] | None = None
        self._fault: ProtocolError | None = None

    def judge_again(self) -> None:
        """Judge the peer by the newest head; raises what is wrong with it, ProtocolError.

        Costs nothing while head and Root are the same. A peer that is not believed any more is
        to be disconnected, with `code` and the error's words.
        """
        newest = (self._trust.root, self._trust.head)
        if newest != self._judged:
            # Another thread that asks meanwhile is told that this is not done yet.
            self._judged = None
            self._fault = None
            try:
                self._judge_facts()
            except ProtocolError as error:
                self._fault = error
            self._forget_entries()
            self._judged = newest
        if self._fault is not None:
            raise self._fault.with_traceback(None)

    def still_may_read(self, manifest: ManifestId) -> bool:
        """Whether it may read a version by the newest head and Root; any thread may ask.

        False also while nobody has judged by these.
        """
        judged = (self._trust.root, self._trust.head) == self._judged and self._fault is None
        # In this order: who judges in between has forgotten the entry before saying so.
        return judged and self.may_read(manifest)

    @property
    def code(self) -> ErrorCode:
        """What to tell the peer that `judge_again` has found wanting."""
        return ErrorCode.DENIED if isinstance(self._fault, NodeDenied) else ErrorCode.BAD_PROOF

    @property
    def reads_everything(self) -> bool:
        """Whether its facts alone entitle the peer to all content."""
        return self._facts.reads_everything

    def show(self, manifest: ManifestId, proof: bytes) -> None:
        """Take an entry that the peer shows; raises NotEntitled or another ProtocolError."""
        self.judge_again()
        if self.reads_everything:
            return
        if not proof:
            raise NotEntitled(f"{self._facts.name} shows no entry for manifest {manifest.short}")
        decoded = Proof.decode(proof)
        self._check(manifest, decoded)
        if manifest not in self._proofs and len(self._proofs) >= MAX_ENTITLED:
            self._proofs.pop(next(iter(self._proofs)))
        self._proofs[manifest] = decoded

    def may_read(self, manifest: ManifestId) -> bool:
        """Whether it may read a version, by what it has shown; `judge_again` first."""
        return self.reads_everything or manifest in self._proofs

    def may_read_leaf(self, owner: NodeFacts) -> bool:
        """Its own leaf, those of its site, and for central and REPOs all."""
        return (
            self.reads_everything
            or owner.node == self._facts.node
            or (owner.site == self._facts.site and self._facts.site != "")
        )

    def _judge_facts(self) -> None:
        try:
            facts = self._trust.check_facts(self._proof, peer_key=self._key)
        except GrantsNotAccepted:
            leaf = self._leaf_of(self._facts.node)
            if leaf is None:
                raise
            proof = leaf.proof()
            facts = self._trust.check_facts(proof, peer_key=self._key)
            self._proof = proof
        if facts != self._facts:
            raise FactsMismatch(f"the facts of {self._facts.name} are others by now")

    def _forget_entries(self) -> None:
        for manifest, proof in list(self._proofs.items()):
            try:
                self._check(manifest, proof)
            except ProtocolError:
                del self._proofs[manifest]

    def _check(self, manifest: ManifestId, proof: Proof) -> None:
        self._trust.check_entitlement(
            proof, peer_key=self._key, manifest=manifest, server=self._server
        )
