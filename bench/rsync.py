"""rsync as a peer: its daemon, which sends in the clear, and over OpenSSH.

Without compression and, unless asked with ``--fsync``, without syncing to disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.network import Network
from bench.servers import ADDRESS, SBIN, CommandPair, Server, free_port


@contextmanager
def rsync_daemon(
    base: Path, source: Path, network: Network, *, name: str = "rsync", options: Sequence[str] = ()
) -> Iterator[CommandPair]:
    """rsync's daemon, which sends in the clear."""
    base.mkdir()
    port = free_port()
    config = base / "rsyncd.conf"

    def offer(folder: Path) -> None:  # the daemon reads it again for each connection
        config.write_text(
            f"use chroot = no\nlog file = {base}/rsyncd.log\nreverse lookup = no\n"
            f"[bench]\npath = {folder}\nread only = yes\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
        )

    offer(source)
    words = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--address={ADDRESS}",
             f"--port={port}"]  # fmt: skip
    server = Server(words, base / "server.log", network, port)
    url = f"rsync://{ADDRESS}:{port}/bench/"
    try:
        yield CommandPair(
            name, base, source, network, server, offer=offer,
            fetch=lambda folder, _: ["rsync", "-a", "--delete", *options, url, f"{folder}/"],
        )  # fmt: skip
    finally:
        server.stop()


@contextmanager
def rsync_ssh(base: Path, source: Path, network: Network) -> Iterator[CommandPair]:
    """rsync over OpenSSH with keys of this run, whatever cipher the two choose."""
    base.mkdir()
    port = free_port()
    for key in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / key)], check=True
        )
    authorized = base / "authorized"
    authorized.write_text((base / "user.pub").read_text())
    config = base / "sshd_config"
    config.write_text(
        f"HostKey {base}/host\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin yes\nListenAddress {ADDRESS}:{port}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd", path=SBIN) or "sshd"
    server = Server([sshd, "-D", "-e", "-f", str(config)], base / "server.log", network, port)
    shell = (
        f"ssh -p {port} -i {base}/user -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        f" -o UserKnownHostsFile={base}/known -o IdentitiesOnly=yes -F none"
    )
    offered = {"folder": source}
    try:
        yield CommandPair(
            "rsync-ssh", base, source, network, server,
            offer=lambda folder: offered.update(folder=folder),
            fetch=lambda folder, _: ["rsync", "-a", "--delete", "-e", shell,
                                     f"{ADDRESS}:{offered['folder']}/", f"{folder}/"],
        )  # fmt: skip
    finally:
        server.stop()
