"""TLS 1.3 between nodes, and a byte stream over it that moves records in batches.

`ssl.SSLObject` works on memory BIOs and the socket is read and written a quarter of a MiB at a
time: `trio.SSLStream` goes through the event loop once per 16 KiB record, which costs more than
the encryption (`bench/tls_stream.py` compares the two). OpenSSL checks certificates against the
fleet's CAs; what a node may do with its connection is not decided here.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, cast

import trio

from archid.net.batches import BATCH_BYTES, RECORD_BYTES, batches
from archid.net.errors import PeerLost, TlsRefused
from archid.net.pacing import Pacer
from archid.net.tls_contexts import ALPN, client_context, joining_context, server_context
from protocol.frames import Buffer

__all__ = [
    "BATCH_BYTES",
    "PeerLost",
    "TLSStream",
    "TlsRefused",
    "client_context",
    "joining_context",
    "server_context",
]

_LINGER_BYTES: Final = 16 * 1024 * 1024
_ALERT_S: Final = 1.0
_HANDSHAKE_READ_BYTES: Final = 16_384
_MAX_HANDSHAKE_BYTES: Final = 64 * 1024


class _Buffers(threading.local):
    """Room for one batch, shared by all streams of a thread.

    Filled and emptied between two awaits, so an idle connection keeps no buffer of its own.
    """

    def __init__(self) -> None:
        self.ciphertext = memoryview(bytearray(BATCH_BYTES))
        # A batch may complete a record that began in the batch before.
        self.plaintext = memoryview(bytearray(BATCH_BYTES + 2 * RECORD_BYTES))


_buffers = _Buffers()
_NOTHING: Final = memoryview(b"")


class TLSStream:
    """A TLS connection over a TCP socket that it owns.

    One task may receive while another sends; senders queue behind a lock. What is received and
    not yet read stays in the kernel, so a slow reader slows the peer down. A send that is
    cancelled half-way closes the stream, since the peer could not make sense of the rest.
    """

    def __init__(
        self, stream: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool
    ) -> None:
        peer_name = stream.socket.getpeername()
        self.remote_host: str = peer_name[0] if isinstance(peer_name, tuple) else "local"
        self.remote_port: int = peer_name[1] if isinstance(peer_name, tuple) else 0
        # trio's own socket would need a buffer that stays reserved while it waits for data; the
        # bare one is waited for without any, and all connections share one buffer.
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._send_lock = trio.StrictFIFOLock()
        self._closed = False
        self._ended = False
        self._said_goodbye = False
        self._send_broken = False
        self.wire_bytes_received = 0
        self.wire_bytes_sent = 0
        self.pacer_out = self.pacer_in = Pacer()
        """Whose limits hold; before anybody has proven who it is, none."""

    @property
    def remote(self) -> str:
        """Where the other end is, for logs."""
        host = f"[{self.remote_host}]" if ":" in self.remote_host else self.remote_host
        return f"{host}:{self.remote_port}"

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate (DER), or None when it showed none.

        OpenSSL has verified it, unless the context was `joining_context()`.
        """
        return self._tls.getpeercert(binary_form=True)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: the peer said goodbye, or the stream is closed."""
        return self._closed or self._ended

    async def do_handshake(self) -> None:
        """Agree on keys and certificates. Raises TlsRefused or PeerLost, and is then closed.

        Takes as long as the peer likes: the caller sets the deadline. A client may return from
        here although the server then refuses its certificate: the first receive tells.
        """
        try:
            await self._handshake()
            if self._tls.selected_alpn_protocol() != ALPN:
                raise TlsRefused(
                    f"{self.remote} speaks TLS, but not archid's protocol",
                    remedy="check the address and the port",
                )
        except TlsRefused:
            # Closed at once, the alert that tells the peer why could be thrown away.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _ALERT_S):
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
                await self._linger()
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    async def _handshake(self) -> None:
        received_bytes = 0
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                await self._flush_quietly()
                raise self._refused(error) from error
            else:
                await self._flush()
                return
            await self._flush()
            count, _ = await self._fill(_HANDSHAKE_READ_BYTES)
            if not count:
                raise PeerLost(f"{self.remote} closed the connection during the TLS handshake")
            received_bytes += count
            if received_bytes > _MAX_HANDSHAKE_BYTES:
                raise PeerLost(f"{self.remote} sent too much during the TLS handshake")

    async def receive_some(self) -> bytes:
        """A copy of what `receive` gives."""
        return bytes(await self.receive())

    async def receive(self) -> memoryview:
        """Everything that has arrived, at most about `BATCH_BYTES`; empty when the peer has ended.

        The view is of a buffer that all streams of this thread share: it must be used up before
        the next `await`. Raises PeerLost when the connection broke or ended without TLS's own
        goodbye, TlsRefused when the peer sends an alert or bytes that are not from it.
        """
        yielded = False
        while True:
            if self._said_goodbye:
                await self._linger()
                return _NOTHING
            if self._incoming.pending or self._incoming.eof or self._ended:
                if not yielded:
                    # Others may run before the shared buffer is filled, but not afterwards.
                    await trio.lowlevel.checkpoint()
                    yielded = True
                plaintext = self._decrypt()
                if plaintext or self._ended:
                    return plaintext
            limit = self.pacer_in
            count, waited = await self._fill(BATCH_BYTES if limit.unlimited else limit.slice_bytes)
            yielded = yielded or waited
            if not count:
                self._incoming.write_eof()

    def _decrypt(self) -> memoryview:
        """All plaintext that the incoming BIO holds and the shared buffer has room for."""
        self._check_open()
        plaintext = _buffers.plaintext
        filled = 0
        try:
            while filled + RECORD_BYTES <= len(plaintext):
                # With a buffer it returns a count; typeshed knows only the form without one.
                room = plaintext[filled : filled + RECORD_BYTES]
                count = cast("int", self._tls.read(RECORD_BYTES, room))
                if not count:
                    self._ended = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if not filled:
                self._flush_once()
                self.close()
                raise self._broken(error) from error
            # What came before the damage is authentic; OpenSSL reports the error again next time.
        return plaintext[:filled]

    async def send_all(self, parts: Iterable[Buffer]) -> None:
        """Send the buffers one after the other, without joining them into one.

        Returns when the kernel has taken everything. Raises PeerLost: then nothing more can be
        sent. A cancelled send closes the stream.
        """
        async with self._send_lock:  # which lets others run
            self._check_open()
            if self._send_broken:
                raise PeerLost(f"Nothing can be sent to {self.remote} any more")
            try:
                for batch in batches(parts):
                    self._write(batch)
                    if self._outgoing.pending >= BATCH_BYTES:
                        await self._flush()
                await self._flush()
            except PeerLost:
                # What the peer sent before, an alert perhaps, can still be received.
                self._send_broken = True
                raise
            except BaseException:
                self.close()
                raise

    def _write(self, batch: Buffer) -> None:
        try:
            written = self._tls.write(batch)
        except ssl.SSLError as error:
            raise self._broken(error) from error
        if written != len(batch):  # a memory BIO takes everything
            raise PeerLost(f"the TLS connection to {self.remote} wrote a part of a batch")

    async def _flush(self) -> None:
        """Hand all that OpenSSL produced to the kernel."""
        while self._outgoing.pending:
            data = memoryview(self._outgoing.read())
            allowed = 0
            while data:
                limit = self.pacer_out
                if not (allowed or limit.unlimited):
                    allowed = min(len(data), limit.slice_bytes)
                    await limit.take(allowed)
                self._check_open()
                try:
                    sent = self._socket.send(data[:allowed] if allowed else data)
                except BlockingIOError:
                    await self._wait(trio.lowlevel.wait_writable)
                except OSError as error:
                    raise self._lost(error) from error
                else:
                    self.wire_bytes_sent += sent
                    allowed = max(0, allowed - sent)
                    data = data[sent:]
                    if data:
                        await trio.lowlevel.checkpoint()

    async def _flush_quietly(self) -> None:
        """Send an alert if it can be sent; the error that it is about is what matters."""
        with suppress(PeerLost):
            await self._flush()

    def _flush_once(self) -> None:
        """Like `_flush_quietly` without waiting, where a task must not be held up."""
        if self._closed or self._send_lock.locked():
            return  # in the middle of somebody's batch nothing may be put between
        with suppress(OSError):
            self._socket.send(self._outgoing.read())

    async def _fill(self, max_bytes: int) -> tuple[int, bool]:
        """Wait until the socket has data and give it to OpenSSL.

        Returns how many bytes, 0 at the socket's end, and whether other tasks could run.
        """
        waited = False
        while True:
            self._check_open()
            buffer = _buffers.ciphertext[:max_bytes]
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
                waited = True
            except OSError as error:
                raise self._lost(error) from error
            else:
                self._incoming.write(buffer[:count])
                self.wire_bytes_received += count
                return count, waited

    async def _wait(self, ready: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            await ready(self._socket)
        except trio.ClosedResourceError:
            self._check_open()
            raise

    async def send_eof(self) -> None:
        """Send no more: TLS's goodbye, then the end of the stream.

        From then on `receive_some` throws away what comes and returns b"" at the peer's end. To
        close at once instead, while the peer still sends, would make the kernel throw away
        what is on its way to the peer, a Goodbye with its reason among it.
        """
        async with self._send_lock:
            await trio.lowlevel.checkpoint()
            self._check_open()
            self._said_goodbye = True
            try:
                with suppress(ssl.SSLError):  # it wants the peer's goodbye: nobody waits for it
                    self._tls.unwrap()
                await self._flush()
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self.close()
                raise self._lost(error) from error
            except BaseException:
                self.close()
                raise

    async def aclose(self) -> None:
        """Close, with TLS's goodbye if it can be sent without waiting."""
        if not self._closed and not self._send_lock.locked():
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush_once()
        self.close()
        await trio.lowlevel.checkpoint()

    async def _linger(self) -> None:
        """Throw away what comes, to a limit, until the peer closes."""
        received_bytes = 0
        try:
            while received_bytes < _LINGER_BYTES:
                self._check_open()
                try:
                    data = self._socket.recv(RECORD_BYTES)
                except BlockingIOError:
                    await self._wait(trio.lowlevel.wait_readable)
                else:
                    if not data:
                        return
                    received_bytes += len(data)
        except (OSError, PeerLost):
            return

    def close(self) -> None:
        """Close at once; tasks that receive or send get PeerLost. May be called again."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise PeerLost(f"The connection to {self.remote} is closed")

    def _lost(self, error: OSError) -> PeerLost:
        return PeerLost(f"The connection to {self.remote} broke: {error.strerror or error}")

    def _refused(self, error: ssl.SSLError) -> TlsRefused:
        """What a failed handshake means, in words."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return TlsRefused(
                f"{self.remote} has a certificate that this fleet's CA did not sign"
                f" ({error.verify_message})",
                remedy="it belongs to another fleet, or has to join this one again",
            )
        reason = _reason(error)
        if "alert" in reason:
            return TlsRefused(f"{self.remote} refused the TLS handshake: {reason}")
        return TlsRefused(f"The TLS handshake with {self.remote} failed: {reason}")

    def _broken(self, error: ssl.SSLError) -> PeerLost | TlsRefused:
        """What an error on an established connection means, in words."""
        if isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING":
            return PeerLost(f"{self.remote} went away without saying goodbye")
        reason = _reason(error)
        if "alert" in reason:
            return TlsRefused(
                f"{self.remote} refused this node's certificate or connection: {reason}",
                remedy="if the node was restored or belongs to another fleet, join again",
            )
        return PeerLost(f"What arrived from {self.remote} is damaged: {reason}")


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason as words: TLSV1_ALERT_UNKNOWN_CA gives 'tlsv1 alert unknown ca'."""
    return (error.reason or str(error)).replace("_", " ").lower()
