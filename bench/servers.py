"""Peers that are a server and a command: rsync's daemon, rsync over ssh, nginx with curl, casync.

The server's CPU is that of its processes, children that have ended included; the client is a
command that begins with nothing in memory. None of them syncs to disk, but rsync with ``--fsync``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.measuring import ProcessMeter, run_metered
from bench.network import Network
from bench.transfer import Transfer, TransferFailed

START_S: Final = 30.0
STOP_S: Final = 10.0
ADDRESS: Final = "127.0.0.1"


class Server:
    """A server process in the foreground, and the port that says when it is ready."""

    def __init__(self, words: Sequence[str], log: Path, network: Network, port: int) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*network.prefix, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        deadline = time.monotonic() + START_S
        probe = [*network.prefix, "bash", "-c", f": </dev/tcp/{network.address}/{port}"]
        while subprocess.run(probe, capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise TransferFailed(f"{words[0]} did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class CommandPair:
    """One that fetches by a command. Made with the command's words for a source and a place."""

    def __init__(
        self,
        name: str,
        base: Path,
        source: Path,
        network: Network,
        server: Server,
        *,
        offer: Callable[[Path], None],
        fetch: Callable[[Path, Path | None], Sequence[str]],
    ) -> None:
        self.name = name
        self.network = network
        self._base = base
        self._server = server
        self._offer = offer
        self._fetch = fetch
        self._rounds = 0
        self._held: Path | None = None
        self.publish_s = self.change(source)

    @contextmanager
    def ready(self) -> Iterator[Path]:
        """An empty folder; it is removed afterwards, with what came after it."""
        self._rounds += 1
        folder = self._base / f"destination-{self._rounds}"
        folder.mkdir()
        self._held = None
        yield folder
        shutil.rmtree(folder)

    def transfer(self, folder: Path) -> Transfer:
        """Run the command to its end."""
        source = ProcessMeter(self._server.pid)
        words = [*self.network.prefix, *self._fetch(folder, self._held)]
        try:
            destination, seconds = run_metered(words, cwd=folder)
        except subprocess.CalledProcessError as error:
            raise TransferFailed(
                f"{' '.join(words)[:300]} ended with {error.returncode}: {error.output}"
            ) from error
        self._held = self.tree(folder)
        return Transfer(seconds, source.read(), destination)

    def tree(self, folder: Path) -> Path:
        """Where the files came to stand."""
        return folder

    def pid(self, folder: Path) -> int:
        """A command does not rest."""
        raise NotImplementedError(f"{self.name} has no process at the destination {folder}")

    def change(self, source: Path) -> float:
        """Offer this folder instead."""
        began = time.perf_counter()
        self._offer(source)
        return time.perf_counter() - began


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


@contextmanager
def nginx_curl(base: Path, source: Path, network: Network) -> Iterator[CommandPair]:
    """nginx with TLS, and curl with four connections, which is given the list of files."""
    base.mkdir()
    port = free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=bench", "-addext", f"subjectAltName=IP:{ADDRESS}", "-days", "2",
         "-keyout", str(base / "key.pem"), "-out", str(base / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = f"ssl_certificate {base}/cert.pem; ssl_certificate_key {base}/key.pem;"
    root = base / "offered"
    server = start_nginx(base, root, network, port, listen="ssl", extra=tls)
    listing = base / "curl.conf"

    def offer(folder: Path) -> None:
        _point(root, folder)
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        listing.write_text(
            "".join(
                f'url = "https://{ADDRESS}:{port}/{path}"\noutput = "{path}"\n' for path in paths
            )
        )

    words = ["curl", "-sSf", "--create-dirs", "--cacert", f"{base}/cert.pem", "-K", str(listing)]
    many = ["--parallel", "--parallel-max", "4"]
    try:
        yield CommandPair(
            "nginx", base, source, network, server, offer=offer,
            fetch=lambda _, __: [*words, *many],
        )  # fmt: skip
    finally:
        server.stop()


class CasyncPair(CommandPair):
    """A version is an index and chunks; the next one is unpacked beside the one before."""

    def tree(self, folder: Path) -> Path:
        """The newest of the versions there."""
        return max(folder.iterdir(), key=lambda one: int(one.name))


@contextmanager
def casync_http(base: Path, source: Path, network: Network) -> Iterator[CasyncPair]:
    """casync over plain HTTP from nginx, seeded with the version before."""
    base.mkdir()
    port = free_port()
    root = base / "offered"
    root.mkdir()
    server = start_nginx(base, root, network, port)
    url = f"http://{ADDRESS}:{port}"
    names: dict[Path, str] = {}
    offered = {"name": ""}

    def offer(folder: Path) -> None:
        if folder not in names:
            names[folder] = f"{len(names)}.caidx"
            subprocess.run(
                ["casync", "make", f"--store={root}/store.castr", *CASYNC_WITH,
                 str(root / names[folder]), str(folder)],
                check=True, capture_output=True,
            )  # fmt: skip
        offered["name"] = names[folder]

    def fetch(folder: Path, held: Path | None) -> list[str]:
        seeds = [f"--seed={held}"] if held else []
        target = folder / str(len(list(folder.iterdir())))
        return ["casync", "extract", f"--store={url}/store.castr", *CASYNC_WITH, *seeds,
                f"{url}/{offered['name']}", str(target)]  # fmt: skip

    try:
        yield CasyncPair("casync", base, source, network, server, offer=offer, fetch=fetch)
    finally:
        server.stop()


CASYNC_WITH: Final = ("--without=all", "--with=sec-time", "--with=permissions")
SBIN: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def start_nginx(
    base: Path, root: Path, network: Network, port: int, *, listen: str = "", extra: str = ""
) -> Server:
    """nginx with two workers and sendfile, for the files below `root`."""
    config = base / "nginx.conf"
    temporary = "\n".join(
        f"{kind}_temp_path {base}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"""daemon off; worker_processes 2; pid {base}/nginx.pid; error_log {base}/error.log;
        user {_user_name()};
        events {{ worker_connections 64; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; {temporary}
            server {{ listen {ADDRESS}:{port} {listen}; {extra} root {root}; }}
        }}"""
    )
    nginx = shutil.which("nginx", path=SBIN) or "nginx"
    words = [nginx, "-c", str(config), "-e", str(base / "error.log")]
    return Server(words, base / "server.log", network, port)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((ADDRESS, 0)) as found:
        port: int = found.getsockname()[1]
    return port


def has(*commands: str) -> Callable[[], bool]:
    """Whether all of these are on this machine."""
    return lambda: all(shutil.which(command, path=SBIN) for command in commands)


def _point(link: Path, folder: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(folder)


def _user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
