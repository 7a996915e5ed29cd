"""The right ids of everything a fleet holds, read from a state folder, for asking what one may not.

A refusal only counts when the question was right: a node that guesses ids would be refused for
that reason alone. So the ids come from central's (or any other node's) documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archid.store.documents import DocumentStore
from archid.store.layout import StatePaths
from archid.store.layouts import Layouts
from archid.store.trust_file import TrustFile
from protocol.documents import GrantsRoot
from protocol.envelope import Envelope
from protocol.facts import Entry, NodeFacts, decode_item
from protocol.grants import LeafDocument
from protocol.head import Head
from protocol.ids import DocumentId, ListId, ManifestId, NodeId, PageId, PieceId
from protocol.limits import MAX_GRANTS_ROOT_BYTES, MAX_HEAD_BYTES, MAX_PIECES_ASKED
from protocol.paged import CATALOGUE, GRANTS, ROSTER, decode_index


@dataclass(frozen=True)
class ScriptIds:
    """One version of one script: its pieces and where its spans are."""

    manifest: ManifestId
    kind: str
    size_bytes: int
    pieces: tuple[PieceId, ...]
    """As many as one request may name."""
    spans: tuple[tuple[PieceId, int], ...]


@dataclass(frozen=True)
class InsiderKnowledge:
    """Everything that one needs to ask the right questions."""

    scripts: tuple[ScriptIds, ...]
    lists: tuple[tuple[str, ListId], ...]
    """Catalogue, Roster and Grants index that the newest head names, with their types."""
    pages: tuple[tuple[str, ListId, PageId], ...]
    leaves: Mapping[NodeId, tuple[DocumentId, ...]]
    """For each node, the Grants roots under which its leaf is held, the newest first."""
    documents: DocumentStore

    @classmethod
    def of(cls, state: Path) -> InsiderKnowledge:
        """Read it from the state folder of a central or a REPO; its daemon may run."""
        paths = StatePaths(state, state.parent / "scripts")
        documents = DocumentStore(paths.documents)
        trust = TrustFile(paths.trust).load()
        if trust is None or trust.head is None:
            raise LookupError(f"{state} holds no head")
        head = Head.decode(Envelope.decode(trust.head, max_bytes=MAX_HEAD_BYTES).payload)
        lists = [(CATALOGUE, head.catalogue), (ROSTER, head.roster)]
        for data in trust.grants:
            envelope = Envelope.decode(data, max_bytes=MAX_GRANTS_ROOT_BYTES)
            if DocumentId.of(envelope.payload) == head.grants_roots[0]:
                lists.append((GRANTS, GrantsRoot.decode(envelope.payload).index))
        pages = [
            (list_type, list_id, page.id)
            for list_type, list_id in lists
            for page in decode_index(documents.get_list(list_id)).pages
        ]
        held = set(documents.leaves())
        nodes = {node for node, _ in held}
        return cls(
            scripts=_scripts(documents),
            lists=tuple(lists),
            pages=tuple(pages),
            leaves={
                node: tuple(root for root in head.grants_roots if (node, root) in held)
                for node in sorted(nodes)
            },
            documents=documents,
        )

    def script(self, manifest: ManifestId) -> ScriptIds:
        """The ids of one version; raises LookupError."""
        for script in self.scripts:
            if script.manifest == manifest:
                return script
        raise LookupError(f"manifest {manifest.short} is not held there")

    def strangers(self, node: NodeId) -> list[NodeId]:
        """Everyone whose leaf a node may not read: servers of a site keep one another's."""
        sites = {one: self._site(one) for one in self.leaves}
        return [one for one in sites if one != node and sites[one] != sites[node]]

    def _site(self, node: NodeId) -> str:
        leaf = LeafDocument.decode(self.documents.get_leaf(node, self.leaves[node][0]))
        facts = decode_item(leaf.items[0])
        if not isinstance(facts, NodeFacts):
            raise LookupError(f"the leaf of {node.short} does not begin with its facts")
        return facts.site

    def stolen_proof(self, node: NodeId, manifest: ManifestId) -> bytes:
        """The entry with which `node` itself is entitled to `manifest`; raises LookupError."""
        for grants_root in self.leaves.get(node, ()):
            leaf = LeafDocument.decode(self.documents.get_leaf(node, grants_root))
            for index, item in enumerate(leaf.items):
                entry = decode_item(item)
                if isinstance(entry, Entry) and entry.manifest == manifest:
                    return leaf.proof(index).encode()
        raise LookupError(f"{node.short} has no entry for manifest {manifest.short}")


def _scripts(documents: DocumentStore) -> tuple[ScriptIds, ...]:
    layouts = Layouts(documents)
    scripts = []
    for manifest in documents.manifests():
        layout = layouts.get(manifest)
        scripts.append(
            ScriptIds(
                manifest,
                layout.root.kind,
                layout.root.size_bytes,
                tuple(ref.id for ref in layout.root.pieces[:MAX_PIECES_ASKED]),
                tuple((span.piece, span.n) for span in layout.spans),
            )
        )
    return tuple(scripts)
