"""Peers that fetch from nginx: curl over TLS, and casync over plain HTTP. Neither syncs to disk."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.network import Network
from bench.servers import ADDRESS, SBIN, CommandPair, Server, free_port

CASYNC_WITH: Final = ("--without=all", "--with=sec-time", "--with=permissions")


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


def _point(link: Path, folder: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(folder)


def _user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
