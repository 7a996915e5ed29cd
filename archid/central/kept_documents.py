"""What central signed, put where every node keeps its documents.

Central is a REPO too: from here on the signed state is served like anybody else's. The trust file
is not written here but by whoever believes the head.
"""

from __future__ import annotations

from collections.abc import Iterable

from archid.central.publishing import PublishedVersion
from archid.central.signed_state import SignedState
from archid.store.documents import DocumentStore
from archid.store.trust_file import TrustState


def keep_documents(
    state: SignedState, documents: DocumentStore, publications: Iterable[PublishedVersion] = ()
) -> None:
    """Put Roots, head, Grants, leaves, lists and manifests into the store, durably.

    Blocks; raises StorageError. Everything is named by content, so doing it twice is harmless.
    """
    held = set(documents.root_versions())
    first = state.root.version - len(state.roots) + 1
    for version, envelope in enumerate(state.roots, first):
        if version not in held:
            documents.put_root(version, envelope)
    for published in publications:
        documents.put_manifest(published.envelope)
    for page_id, page in state.pages.items():
        if not documents.has_page(page_id):
            documents.put_page(page)
    for list_id, index in state.lists.items():
        if not documents.has_list(list_id):
            documents.put_list(index)
    for node in state.nodes:
        if not documents.has_leaf(node, state.grants_root):
            documents.put_leaf(node, state.grants_root, state.leaf(node))
    for grants_root, envelope in zip(state.head.grants_roots, state.grants_envelopes, strict=False):
        if not documents.has_grants(grants_root):
            documents.put_grants(envelope)
    documents.put_head(state.head_envelope)
    documents.sync()


def trust_state(state: SignedState) -> TrustState:
    """The content of the trust file of a node that believes exactly this."""
    newest_issued_s = max(state.root.issued_s, state.head.issued_s)
    return TrustState(
        root=state.roots[-1],
        head=state.head_envelope,
        grants=state.grants_envelopes,
        newest_issued_s=newest_issued_s,
    )
