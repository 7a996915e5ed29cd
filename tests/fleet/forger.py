"""A member of the fleet that says what no member should: authenticated, and hostile.

It has the real key of an enrolled node, whose daemon is not running, and speaks through the real
network code. What it shows may be signed with central's own keys, as by somebody who has stolen
them, or with another fleet's.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from archid.addresses import parse_address
from archid.central.keys import OnlineKeys
from archid.central.root_keys import load_root_keys
from archid.net.doorkeeper import Ask
from archid.net.peer import Peer
from archid.store.trust_file import TrustFile
from protocol.envelope import Envelope, PublicKey, Signature, signing_input
from protocol.head import Head
from protocol.limits import MAX_HEAD_BYTES, MAX_ROOT_BYTES
from protocol.messages import (
    Answer,
    ErrorCode,
    GetGrants,
    GetRoot,
    GrantsAnswer,
    HeadAnnounce,
    Hello,
    Prove,
    Request,
    RootDocument,
)
from protocol.root import Root
from tests.fleet.local import PASSPHRASE, FleetNode
from tests.fleet.probe import Probe, _ReadingDoorkeeper


@dataclass(frozen=True)
class Pretence:
    """What the forger says instead of the truth; None is the truth."""

    head_order: tuple[int, int] | None = None
    root_version: int | None = None
    head: bytes | None = None
    grants: bytes | None = None
    proof: bytes | None = None
    roots: Callable[[int], bytes | None] = lambda _version: None
    """What is answered to GetRoot."""
    grants_answer: bytes | None = None
    """What is answered to GetGrants."""


class StolenKeys:
    """Central's keys and the root keys: whatever they sign has good signatures."""

    def __init__(self, central: FleetNode) -> None:
        self.keys = OnlineKeys.load(central.state)
        self._root_keys = load_root_keys(central.folder.parent / "root-keys", PASSPHRASE)
        self._numbers = itertools.count(1)

    def head(self, head: Head, **changes: Any) -> bytes:
        """The head with these changes, in an envelope with a good signature."""
        return self.keys.envelope("head", Head.TYPE, replace(head, **changes).encode())

    def fork(self, head: Head) -> bytes:
        """Another head with the same numbers, another one each time."""
        return self.head(head, expires_s=head.expires_s + next(self._numbers))

    def root(self, root: Root, **changes: Any) -> bytes:
        """The Root with these changes, signed with the real root keys."""
        payload = replace(root, **changes).encode()
        signatures = [
            Signature(
                PublicKey(key.public_key().public_bytes_raw()).key_id,
                key.sign(signing_input(Root.TYPE, payload)),
            )
            for key in self._root_keys
        ]
        return Envelope(payload, tuple(signatures)).encode()


def trusted_head(state: Path) -> tuple[Head, bytes, bytes]:
    """The head that a state folder believes, its envelope and its newest Grants root."""
    trust = TrustFile(state / "trust").load()
    assert trust is not None
    assert trust.head is not None
    head = Head.decode(Envelope.decode(trust.head, max_bytes=MAX_HEAD_BYTES).payload)
    return head, trust.head, trust.grants[0]


def trusted_root(state: Path) -> tuple[Root, bytes]:
    """The newest Root that a state folder believes, and its envelope."""
    trust = TrustFile(state / "trust").load()
    assert trust is not None
    assert trust.root is not None
    return Root.decode(Envelope.decode(trust.root, max_bytes=MAX_ROOT_BYTES).payload), trust.root


class Forger(Probe):
    """Connects as the node of a state folder, and pretends."""

    @asynccontextmanager
    async def pretending(
        self, address: str, pretence: Pretence | None = None
    ) -> AsyncIterator[Peer]:
        """An admitted connection; raises what `Probe.connect` raises when it is not admitted."""
        said = pretence or Pretence()
        try:
            async with (
                self._dialled(parse_address(address), _Pretender(self, said)) as peer,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_answer, peer, said)
                nursery.start_soon(_pass_over_notices, peer)
                yield peer
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None


async def announce(peer: Peer, head: bytes, grants: bytes = b"") -> None:
    """Tell the peer of a head."""
    await peer.announce(HeadAnnounce(head, grants))


class _Pretender(_ReadingDoorkeeper):
    """Proves itself truly but for what the pretence replaces."""

    def __init__(self, forger: Forger, said: Pretence) -> None:
        super().__init__(forger)
        self._said = said

    def hello(self) -> Hello:
        said, true = self._said, super().hello()
        return replace(
            true,
            head_order=said.head_order or true.head_order,
            root_version=said.root_version or true.root_version,
        )

    async def prove(self, peer: Hello, ask: Ask) -> Prove:
        said, true = self._said, await super().prove(peer, ask)
        return Prove(
            true.head if said.head is None else said.head,
            true.grants if said.grants is None else said.grants,
            true.proof if said.proof is None else said.proof,
        )

    async def answer(self, request: Request, *known: Any) -> Answer:
        answer = _said(request, self._said)
        return answer if answer is not None else await super().answer(request, *known)


def _said(request: Request, said: Pretence) -> Answer | None:
    if isinstance(request, GetRoot) and (root := said.roots(request.version)) is not None:
        return RootDocument(request.request, root)
    if isinstance(request, GetGrants) and said.grants_answer is not None:
        return GrantsAnswer(request.request, said.grants_answer)
    return None


async def _answer(peer: Peer, said: Pretence) -> None:
    async for request in peer.requests:
        answer = _said(request, said)
        if answer is None:
            await peer.refuse(request, ErrorCode.NOT_READY, "it is not said here")
        else:
            await peer.answer(answer)


async def _pass_over_notices(peer: Peer) -> None:
    async for _notice in peer.notices:
        pass
