"""What one peer may read over its connection.

Central and REPOs may read everything. Anyone else shows one entry of its leaf for each manifest;
what was shown is remembered for this connection and judged again whenever the head changes, so
that a revocation reaches connections that are already open.
"""

from __future__ import annotations

from protocol.envelope import PublicKey
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import Proof
from protocol.ids import ManifestId
from protocol.refusals import NotEntitled
from protocol.trust import TrustedDocuments

MAX_ENTITLED = 4096
"""Manifests one peer may have shown entries for at a time; more than any leaf needs at once."""


class Access:
    """The entitlements of one connection; no I/O."""

    def __init__(
        self, trust: TrustedDocuments, facts: NodeFacts, key: PublicKey, server: NodeFacts
    ) -> None:
        self._trust = trust
        self._facts = facts
        self._key = key
        self._server = server
        self._proofs: dict[ManifestId, Proof] = {}

    @property
    def reads_everything(self) -> bool:
        return self._facts.reads_everything

    def show(self, manifest: ManifestId, proof: bytes) -> None:
        """Take an entry that the peer shows; raises NotEntitled or another ProtocolError."""
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
        return self.reads_everything or manifest in self._proofs

    def may_read_leaf(self, owner: NodeFacts) -> bool:
        """Its own leaf, those of its site, and for central and REPOs all."""
        return (
            self.reads_everything
            or owner.node == self._facts.node
            or (owner.site == self._facts.site and self._facts.site != "")
        )

    def judge_again(self) -> None:
        """After the head changed: forget every entry that no longer holds."""
        for manifest, proof in list(self._proofs.items()):
            try:
                self._check(manifest, proof)
            except ProtocolError:
                del self._proofs[manifest]

    def _check(self, manifest: ManifestId, proof: Proof) -> None:
        self._trust.check_entitlement(
            proof, peer_key=self._key, manifest=manifest, server=self._server
        )
