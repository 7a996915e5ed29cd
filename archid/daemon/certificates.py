"""Keeps what TLS needs up to date: the CAs that Root names, and this node's own certificate.

When a Root brings another CA, the node takes a certificate by it: central from itself, the others
from central. It is shown once the old CA counts no more, since a node that was away may know that
one only. A node that nobody lets in may have missed several such Roots; it asks central for
them in the way of a newcomer (`archid.net.renewing`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import trio

from archid.addresses import Address
from archid.errors import ArchidError
from archid.events import EventHub
from archid.identity import Identity
from archid.log import SparingLog, get_logger
from archid.net.certificates import signed_by
from archid.net.renewing import renew_certificate
from archid.net.tls_contexts import TlsContexts
from archid.sync.peers import PeerDirectory
from archid.sync.signal import either
from archid.sync.trust_keeper import TrustKeeper
from archid.sync.trust_restoring import decode_envelope
from protocol.envelope import PublicKey
from protocol.errors import ProtocolError
from protocol.root import Root

log = get_logger(__name__)
_sparing = SparingLog(log)

FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 600.0
LONELY_S: Final = 15.0
"""A node without any peer for so long asks central whether the CA is another one by now."""


class Certificates:
    """Follows the Roots for TLS; `run` is a task of the node."""

    def __init__(
        self,
        identity: Identity,
        contexts: TlsContexts,
        keeper: TrustKeeper,
        directory: PeerDirectory,
        events: EventHub,
        *,
        central: Callable[[], Collection[Address]],
        issue: Callable[[PublicKey], Awaitable[bytes]] | None,
    ) -> None:
        """`central` says where central may be reached; `issue` is central's own way."""
        self._identity = identity
        self._contexts = contexts
        self._keeper = keeper
        self._directory = directory
        self._events = events
        self._central = central
        self._issue = issue

    async def run(self) -> None:
        """Follow Roots and, while nobody lets this node in, ask for them; until cancelled."""
        wait_s = FIRST_RETRY_S
        while True:
            keeper, peers = self._keeper.changed, self._directory.changed
            seen = (keeper, keeper.version), (peers, peers.version)
            await self._follow(ask=False)
            lonely = not self._directory.all() and self._issue is None
            if lonely:
                nap_s = max(wait_s, LONELY_S)
            elif self._is_current():
                nap_s = math.inf
            else:
                nap_s = wait_s
            with trio.move_on_after(nap_s) as timer:
                await either(*seen)
            wait_s = FIRST_RETRY_S
            if timer.cancelled_caught:
                wait_s = min(2 * nap_s, LONGEST_RETRY_S)
                await self._follow(ask=True)

    async def _follow(self, *, ask: bool) -> None:
        """Take up what Root says; `ask` central also when nothing is known to be missing."""
        try:
            if ask or not self._is_current():
                await self._obtain()
            await self._show_what_counts()
            self._contexts.update(self._keeper.root.ca_certificates)
        except (ArchidError, ProtocolError) as error:
            _sparing.error("certificate_unusable", why=str(error))

    def _held(self) -> list[bytes]:
        shown, waiting = self._identity.certificate, self._identity.next_certificate()
        return [each for each in (shown, waiting) if each is not None]

    def _is_current(self) -> bool:
        """Whether there is a certificate by the CA that issues now."""
        newest = self._keeper.root.ca_certificates[:1]
        return any(signed_by(each, newest) for each in self._held())

    async def _show_what_counts(self) -> None:
        """Show the old certificate for as long as its CA counts: some do not know the new one."""
        cas = self._keeper.root.ca_certificates
        shown, waiting = self._identity.certificate, self._identity.next_certificate()
        if waiting is None or not signed_by(waiting, cas):
            return
        if shown is not None and signed_by(shown, cas):
            return
        self._identity = await trio.to_thread.run_sync(self._identity.with_certificate, waiting)
        self._contexts.replace_identity(self._identity, cas)
        log.info("certificate_replaced")

    async def _obtain(self) -> None:
        if self._issue is not None:
            certificate: bytes | None = await self._issue(self._identity.public_key)
        else:
            certificate = await self._ask_central()
        if certificate is None:
            return
        await trio.to_thread.run_sync(self._identity.keep_next_certificate, certificate)
        log.info("certificate_renewed")
        self._events.publish("certificate.renewed", root_version=self._keeper.root.version)

    async def _ask_central(self) -> bytes | None:
        for address in self._central():
            try:
                return await renew_certificate(
                    address,
                    identity=self._identity,
                    held=self._held(),
                    take_roots=self._take_roots,
                )
            except (ArchidError, ProtocolError, OSError) as error:
                _sparing.info("certificate_not_given", address=str(address), why=str(error))
        return None

    async def _take_roots(self, roots: Sequence[bytes]) -> Root:
        """Believe those that are newer than ours and follow from it; raises ProtocolError."""
        for data in roots:
            version = Root.decode(decode_envelope(data).payload).version
            if version == self._keeper.root.version + 1:
                await self._keeper.accept_root(data)
        return self._keeper.root
