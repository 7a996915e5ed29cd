"""``archid join``: how a new node becomes a member of a fleet with a token.

The token names central and the Root's fingerprint. Nothing secret is said before the other end
has shown that Root and a certificate for central by that Root's CA. What comes back is verified
as anything else, stored, and only then confirmed. A join that was interrupted goes on with the
same key, which central recognises.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from archid import __version__
from archid.addresses import Address, parse_address
from archid.errors import ArchidError, Conflict, Denied, TrustFailure, Unavailable, UsageError
from archid.identity import Identity
from archid.log import get_logger
from archid.membership import FILE_NAME, Membership
from archid.net.certificates import check_own, node_of, signed_by
from archid.net.dial_errors import why_unreachable
from archid.net.errors import PeerLost, PeerRefused, TlsRefused
from archid.net.join_exchange import JoinPump, newcomer_hello
from archid.net.pump import pumping
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream, joining_context
from archid.store.documents import DocumentStore
from archid.store.layout import StateLock, StatePaths
from archid.store.leaving import forget_membership
from archid.store.trust_file import TrustFile, TrustState
from protocol.connection_states import Side
from protocol.envelope import Envelope
from protocol.errors import FormatError, ProtocolError, TrustError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument
from protocol.ids import DocumentId, FleetId, NodeId
from protocol.join_token import JoinToken
from protocol.limits import MAX_GRANTS_ROOT_BYTES, MAX_HEAD_BYTES, MAX_LABEL_BYTES, MAX_ROOT_BYTES
from protocol.messages import (
    JOIN_PROOF_TYPE,
    ErrorCode,
    Hello,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinReady,
    JoinRequest,
    join_proof_payload,
)
from protocol.root import Root
from protocol.trust import TrustedDocuments

_log = get_logger(__name__)

_MAY_BE_RECORDED: Final = {ErrorCode.NOT_READY, ErrorCode.INTERNAL, ErrorCode.OTHER}
"""Refusals after which the token may be used up for this node's key all the same."""
_PASSING: Final = {*_MAY_BE_RECORDED, ErrorCode.BUSY}
_REPLACE: Final = "make a new token on central with 'archid token create'"


class JoinRefused(Denied):
    """Central does not let this node in; `code` is the protocol's."""


@dataclass(frozen=True)
class Joined:
    """The membership that came of it."""

    node: NodeId
    facts: NodeFacts
    fleet: FleetId
    fleet_name: str


@dataclass(frozen=True)
class _Verified:
    """What central sent, once it is believed."""

    trusted: TrustedDocuments
    anchor: Root
    accepted: JoinAccepted
    leaf: LeafDocument
    facts: NodeFacts


async def join_fleet(
    text: str,
    *,
    paths: StatePaths,
    role: str,
    player_gid: int | None = None,
    name: str = "",
    settings: PeerSettings | None = None,
) -> Joined:
    """Join the fleet that the token is for, and write the state folder.

    `role` is what this node is configured as. `name` counts if the token names nobody; without
    one it is the host's. Raises UsageError for a bad token or one for another role, Conflict when
    the state belongs to a fleet or is in use, Unavailable when central cannot be reached,
    JoinRefused, TrustFailure, StorageError. What it made is taken away again if it was refused.
    """
    token = _read_token(text, role)
    paths.prepare(player_gid=player_gid)
    with StateLock(paths.lock):
        if (paths.identity / FILE_NAME).exists():
            raise Conflict(
                f"The state folder {paths.state} belongs to a fleet already",
                remedy="use another state folder, or run 'archid leave' first",
                code="already_joined",
            )
        resumed = (paths.identity / "key.pem").exists()
        identity = Identity.load(paths.state) if resumed else Identity.create(paths.state)
        joining = _Joining(token, identity, paths, role, name or socket.gethostname(), settings)
        try:
            return await joining.run()
        except BaseException:
            # Once central may have recorded the key, only the same key can use the token again.
            if not resumed and not joining.may_be_recorded:
                forget_membership(paths, purge=False)
            raise


def _read_token(text: str, role: str) -> JoinToken:
    try:
        token = JoinToken.decode(text)
        for address in token.addresses:
            parse_address(address)
    except (FormatError, ValueError, ProtocolError) as error:
        raise UsageError(
            f"That is not a usable joining token: {error}",
            remedy="copy all of what 'archid token create' printed",
            code="token_malformed",
        ) from error
    if token.role != role:
        raise UsageError(
            f"The token is for the role {token.role!r}, this node is configured as {role!r}",
            remedy="set [node] role in the configuration, or " + _REPLACE,
            code=ErrorCode.TOKEN_WRONG_ROLE.name_text,
        )
    return token


class _Joining:
    """One attempt to join, over each of the token's addresses until one answers."""

    def __init__(
        self,
        token: JoinToken,
        identity: Identity,
        paths: StatePaths,
        role: str,
        name: str,
        settings: PeerSettings | None,
    ) -> None:
        self._token = token
        self._identity = identity
        self._paths = paths
        self._role = role
        self._name = name.encode()[:MAX_LABEL_BYTES].decode(errors="ignore")
        self._settings = settings or PeerSettings()
        self.may_be_recorded = False

    async def run(self) -> Joined:
        problems = []
        for address in map(parse_address, self._token.addresses):
            try:
                return await self._join_at(address)
            except PeerRefused as error:
                self.may_be_recorded &= error.reason in _MAY_BE_RECORDED
                raise _refused(error) from error
            except TlsRefused as error:
                problems.append(f"{address}: what answers there is no archid ({error})")
            except OSError as error:
                problems.append(why_unreachable(error, address))
            except PeerLost as error:
                problems.append(f"{address}: {error}")
        raise Unavailable(
            "Central could not be reached or did not finish (" + "; ".join(problems) + ")",
            remedy="check that central runs and that the network lets this node reach it, then"
            " repeat the same command",
            code="central_unreachable",
        )

    async def _join_at(self, address: Address) -> Joined:
        settings = self._settings
        with trio.move_on_after(settings.admission_timeout_s) as scope:
            tcp = await trio.open_tcp_stream(address.host, address.port)
            stream = TLSStream(tcp, joining_context(), server_side=False)
            await stream.do_handshake()
        if scope.cancelled_caught:
            raise PeerLost(f"it did not answer within {settings.admission_timeout_s:g} seconds")
        hello = newcomer_hello(f"archid {__version__}")
        pump = JoinPump(stream, settings, side=Side.CLIENT, hello=hello)
        async with pumping(pump):
            verified = None
            with trio.move_on_after(settings.request_timeout_s):
                verified = await self._converse(pump, hello)
            if verified is None:
                raise PeerLost(f"it did not finish within {settings.request_timeout_s:g} seconds")
            # Not to be cut in two: with that the node is a member, whatever the network does.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._store, verified)
            with trio.move_on_after(settings.goodbye_timeout_s):
                await self._confirm(pump)
        root = verified.trusted.root or verified.anchor
        return Joined(self._identity.node_id, verified.facts, root.fleet, root.fleet_name)

    async def _converse(self, pump: JoinPump, ours: Hello) -> _Verified:
        token, identity = self._token, self._identity
        theirs = await pump.peer_hello()
        pump.push(JoinBegin(token.token_id))
        offer = await pump.expect(JoinOffer)
        trusted, anchor = self._check_offer(offer, theirs, pump.stream)
        payload = join_proof_payload(
            token_id=token.token_id,
            public_key=identity.public_key,
            name=self._name,
            client_nonce=ours.nonce,
            server_nonce=theirs.nonce,
        )
        signature = identity.sign(JOIN_PROOF_TYPE, payload).value
        self.may_be_recorded = True
        pump.push(
            JoinRequest(token.token_id, token.secret, identity.public_key, signature, self._name)
        )
        accepted = await pump.expect(JoinAccepted)
        return self._check_accepted(accepted, trusted, anchor)

    def _check_offer(
        self, offer: JoinOffer, theirs: Hello, stream: TLSStream
    ) -> tuple[TrustedDocuments, Root]:
        """Believe the Root that the token names and those after it, and that this is central."""
        try:
            trusted = TrustedDocuments()
            envelopes = _from_anchor(offer.roots, self._token.fingerprint)
            anchor = trusted.accept_first_root(envelopes[0], self._token.fingerprint)
            for envelope in envelopes[1:]:
                trusted.accept_root(envelope)
            root = trusted.root or anchor
            if theirs.fleet != root.fleet:
                raise TrustError("it says that it belongs to another fleet than its Root")
            certificate = stream.peer_certificate or b""
            if not signed_by(certificate, root.ca_certificates):
                raise TrustError("its certificate was not signed by the fleet's CA")
            if node_of(certificate) != self._token.central:
                raise TrustError("it is another node than the central that the token names")
        except ProtocolError as error:
            raise TrustFailure(
                f"{stream.remote} is not the central that made the token: {error}; it was told"
                " nothing secret",
                remedy="check the network between here and central, or " + _REPLACE,
                code="not_central",
            ) from error
        return trusted, anchor

    def _check_accepted(
        self, accepted: JoinAccepted, trusted: TrustedDocuments, anchor: Root
    ) -> _Verified:
        identity = self._identity
        try:
            for envelope in _from_anchor(accepted.roots, anchor.fingerprint)[1:]:
                trusted.accept_root(envelope)
            head = Envelope.decode(accepted.head, max_bytes=MAX_HEAD_BYTES)
            trusted.accept_head(head, now=time.time())
            grants = Envelope.decode(accepted.grants, max_bytes=MAX_GRANTS_ROOT_BYTES)
            trusted.accept_grants(grants)
            document = LeafDocument.decode(accepted.leaf)
            facts = trusted.check_leaf(document).facts
            if facts.node != identity.node_id or facts.key != identity.public_key:
                raise TrustError("the facts are of another node")
            check_own(
                accepted.certificate,
                node=identity.node_id,
                public_key=identity.public_key,
                cas=(trusted.root or anchor).ca_certificates,
            )
        except ProtocolError as error:
            raise TrustFailure(
                f"What central sent does not hold: {error}",
                remedy="look at central's log, then repeat the same command",
                code="join_unproven",
            ) from error
        if facts.role != self._role:
            # The text of the token lied; central's word counts, and this key has used it.
            raise UsageError(
                f"Central made this token for the role {facts.role!r}, this node is configured as"
                f" {self._role!r}",
                remedy="set [node] role in the configuration and repeat the same command, or "
                + _REPLACE,
                code=ErrorCode.TOKEN_WRONG_ROLE.name_text,
            )
        return _Verified(trusted, anchor, accepted, document, facts)

    def _store(self, verified: _Verified) -> None:
        """Everything durably, the membership last: without it nothing of this counts."""
        accepted, trusted = verified.accepted, verified.trusted
        documents = DocumentStore(self._paths.documents)
        for version, envelope in trusted.roots.items():
            documents.put_root(version, envelope.encode())
        documents.put_grants(accepted.grants)
        documents.put_head(accepted.head)
        leaf = verified.leaf
        documents.put_leaf(leaf.node, leaf.grants_root, accepted.leaf)
        documents.sync()
        newest = trusted.roots[max(trusted.roots)]
        TrustFile(self._paths.trust).save(
            TrustState(
                root=newest.encode(),
                head=accepted.head,
                grants=(accepted.grants,),
                newest_issued_s=trusted.newest_issued_s,
                roots=tuple((version, one.encode()) for version, one in trusted.roots.items()),
            )
        )
        self._identity.with_certificate(accepted.certificate)
        Membership(
            fleet=verified.anchor.fleet,
            fleet_name=verified.anchor.fleet_name,
            anchor=verified.anchor.fingerprint,
            anchor_version=verified.anchor.version,
            central_addresses=tuple(map(parse_address, self._token.addresses)),
        ).save(self._paths.identity)

    async def _confirm(self, pump: JoinPump) -> None:
        """Say that it is stored; should that get lost, the first normal connection says it."""
        try:
            pump.push(JoinReady())
            await pump.closed.wait()
        except ArchidError as error:
            _log.warning("join_not_confirmed", reason=str(error))


def _from_anchor(roots: Sequence[bytes], fingerprint: DocumentId) -> list[Envelope]:
    """The Roots from the one with this fingerprint on; raises TrustError when it is not there."""
    envelopes = [Envelope.decode(data, max_bytes=MAX_ROOT_BYTES) for data in roots]
    for position, envelope in enumerate(envelopes):
        if DocumentId.of(envelope.payload) == fingerprint:
            return envelopes[position:]
    raise TrustError("it does not have the Root that the token names")


def _refused(error: PeerRefused) -> ArchidError:
    """Why central said no, with what to do about it."""
    remedies = {
        ErrorCode.TOKEN_INVALID: "check that the token was copied whole, or " + _REPLACE,
        ErrorCode.NOT_READY: "look at 'archid status' on central, and repeat the same command",
    }
    text = error.text or error.reason.name_text
    text = text[:1].lower() + text[1:]
    kind = Unavailable if error.reason in _PASSING else JoinRefused
    return kind(
        f"Central does not let this node join: {text}",
        remedy=remedies.get(error.reason, _REPLACE),
        code=error.reason.name_text,
    )
