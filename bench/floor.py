"""What moving a verified, encrypted byte costs the CPU, part by part, each part alone.

A sender reads a warm file, encrypts (AES-256-GCM, frames of 1 MiB) and sends over TCP; a receiver
receives, decrypts, hashes (BLAKE3) and writes. Each part is run over the same bytes with nothing
beside it, with buffers that are reused, and its CPU seconds are taken; for TCP each end's own, from
two processes. Python's libraries do the work in blocks of 1 MiB, so the interpreter costs nothing.

*What the CPU allows* is the size over the sum of all parts divided by the number of cores: all
cores busy with nothing else, however the work is spread. With one thread at each end it could only
be the size over the dearer end; that is reported beside it, as is the rate with syncing the file
counted too. What the kernel does later, in threads of its own (writing back), is in none.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.measuring import Spread, table, warm_memory

BLOCK: Final = 1 << 20
TAG: Final = 16
SENDER: Final = ("read", "encrypt", "send")
RECEIVER: Final = ("receive", "decrypt", "BLAKE3", "write")
SYNC: Final = "sync"
GIB: Final = 1 << 30


@dataclass(frozen=True)
class Floor:
    """CPU seconds a GiB of each part."""

    parts: Mapping[str, float]

    @property
    def sender(self) -> float:
        return sum(self.parts[part] for part in SENDER)

    @property
    def receiver(self) -> float:
        return sum(self.parts[part] for part in RECEIVER)

    @property
    def allowed_mb_per_s(self) -> float:
        """All cores share all parts evenly."""
        return GIB / 1e6 / ((self.sender + self.receiver) / (os.cpu_count() or 1))

    @property
    def allowed_with_sync_mb_per_s(self) -> float:
        """The same, and the file is synced to disk at the end."""
        total = self.sender + self.receiver + self.parts[SYNC]
        return GIB / 1e6 / (total / (os.cpu_count() or 1))

    @property
    def one_thread_an_end_mb_per_s(self) -> float:
        """The dearer end decides."""
        return GIB / 1e6 / max(self.sender, self.receiver)


def measure(folder: Path, size_bytes: int) -> Floor:
    """Every part once, over `size_bytes` in a folder that is emptied again."""
    blocks = max(1, min(size_bytes, GIB) // BLOCK)
    folder.mkdir(exist_ok=True)
    path = folder / "bytes"
    warm_memory(blocks * BLOCK)
    block = bytearray(os.urandom(BLOCK))
    sealed = bytearray(BLOCK + TAG)
    cipher = AESGCM(bytes(32))
    nonce = bytes(12)
    cipher.encrypt_into(nonce, block, None, sealed)
    plain = bytearray(BLOCK)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for at in range(blocks):
            os.pwrite(fd, block, at * BLOCK)
        os.close(fd)

    def sync() -> None:
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.close(fd)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        for at in range(blocks):
            os.preadv(fd, [plain], at * BLOCK)
        os.close(fd)

    seconds = {"write": _cpu_of(write), "sync": _cpu_of(sync), "read": _cpu_of(read)}
    seconds["encrypt"] = _cpu_of(
        lambda: _repeat(blocks, lambda: cipher.encrypt_into(nonce, block, None, sealed))
    )
    seconds["decrypt"] = _cpu_of(
        lambda: _repeat(blocks, lambda: cipher.decrypt_into(nonce, sealed, None, plain))
    )
    seconds["BLAKE3"] = _cpu_of(lambda: _repeat(blocks, lambda: blake3(block).digest()))
    seconds["send"], seconds["receive"] = _tcp(blocks, block)
    path.unlink()
    gib = blocks * BLOCK / GIB
    return Floor({part: value / gib for part, value in seconds.items()})


def _repeat(times: int, work: Callable[[], object]) -> None:
    for _ in range(times):
        work()


def _cpu_of(work: Callable[[], None]) -> float:
    began = _used()
    work()
    return _used() - began


def _used(who: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _tcp(blocks: int, block: bytearray) -> tuple[float, float]:
    """CPU seconds of the sender, a child, and of the receiver, this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with socket.create_connection(listener.getsockname()) as sending:
                    for _ in range(blocks):
                        sending.sendall(block)
                code = 0
            finally:
                os._exit(code)
        receiving, _ = listener.accept()
        view = memoryview(bytearray(BLOCK))
        with receiving:
            began = _used()
            left = blocks * BLOCK
            while left > 0:
                received = receiving.recv_into(view)
                if not received:
                    raise OSError("the sending end of the floor hung up")
                left -= received
            seconds = _used() - began
        _, _, used = os.wait4(pid, 0)
    return used.ru_utime + used.ru_stime, seconds


def summary(floors: Sequence[Floor]) -> dict[str, Any]:
    """Medians and extremes."""
    return {
        "cpu_s_per_gib": {
            part: vars(Spread.of(one.parts[part] for one in floors))
            for part in (*SENDER, *RECEIVER, SYNC)
        },
        "allowed_mb_per_s": vars(Spread.of(one.allowed_mb_per_s for one in floors)),
        "allowed_with_sync_mb_per_s": vars(
            Spread.of(one.allowed_with_sync_mb_per_s for one in floors)
        ),
        "one_thread_an_end_mb_per_s": vars(
            Spread.of(one.one_thread_an_end_mb_per_s for one in floors)
        ),
    }


def report(figures: Mapping[str, Any]) -> Iterator[str]:
    """The parts as a table, and what they allow."""
    parts = figures["cpu_s_per_gib"]
    head = ["CPU s a GiB", *parts]
    yield table(head, [["alone", *(Spread(**one).text(2) for one in parts.values())]])
    allowed = Spread(**figures["allowed_mb_per_s"]).text(0)
    synced = Spread(**figures["allowed_with_sync_mb_per_s"]).text(0)
    alone = Spread(**figures["one_thread_an_end_mb_per_s"]).text(0)
    yield (
        f"What the CPU allows with all cores busy: {allowed} MB/s ({synced} with the sync to disk);"
        f" with one thread at each end: {alone} MB/s."
    )
