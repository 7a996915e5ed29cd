"""One end of a libtorrent transfer, a program of its own: told by JSON lines, it answers by them.

It imports nothing of archid, so that any Python that has libtorrent can run it (that of
`make bench` or Debian's). Discovery, uTP, encryption and limits are off; peers are connected by
hand.

    {"make": FOLDER, "torrent": FILE}                   hash a folder into a torrent
    {"seed": FOLDER, "torrent": FILE}                   offer it, without hashing it again
    {"fetch": FOLDER, "torrent": FILE, "peers": [[ADDRESS, PORT], ...]}
                                                        get it from them; what is there is checked
    {"forget": true}                                    drop every torrent
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import libtorrent as lt

WAIT_MS = 50
PATIENCE_S = 900.0
RECONNECT_S = 1.0
CATEGORIES = (
    lt.alert.category_t.status_notification
    | lt.alert.category_t.error_notification
    | lt.alert.category_t.storage_notification
)


def make_session(address: str, port: int) -> Any:
    return lt.session(
        {
            "listen_interfaces": f"{address}:{port}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_natpmp": False,
            "enable_upnp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
            "in_enc_policy": lt.enc_policy.disabled,
            "out_enc_policy": lt.enc_policy.disabled,
            "min_reconnect_time": 1,
            "allow_multiple_connections_per_ip": True,
            "unchoke_slots_limit": -1,
            "connections_limit": 200,
            "alert_mask": CATEGORIES,
        }
    )


def make_torrent(folder: str, path: str) -> None:
    """Version 1: one SHA-1 over each piece, the cheaper one."""
    storage = lt.file_storage()
    lt.add_files(storage, folder)
    torrent = lt.create_torrent(storage, 0, lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, os.path.dirname(folder))
    with open(path, "wb") as file:
        file.write(lt.bencode(torrent.generate()))


def add(session: Any, folder: str, path: str, *, seed: bool) -> Any:
    """Add a torrent whose files are below `folder`, which has the torrent's name."""
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(path)
    params.save_path = os.path.dirname(folder)
    params.flags &= ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused
    if seed:
        params.flags |= lt.torrent_flags.seed_mode
    return session.add_torrent(params)


def fetch(session: Any, order: dict[str, Any]) -> float:
    """Seconds until every piece is here, hashed and written."""
    began = time.perf_counter()
    handle = add(session, order["fetch"], order["torrent"], seed=False)
    deadline = time.monotonic() + PATIENCE_S
    connect_at = began
    while time.monotonic() < deadline:
        session.wait_for_alert(WAIT_MS)
        for alert in session.pop_alerts():
            if isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
                raise RuntimeError(alert.message())
        status = handle.status()
        checking = (lt.torrent_status.checking_files, lt.torrent_status.checking_resume_data)
        if status.state in checking:
            continue
        if status.is_seeding:
            flush(session, handle)
            return time.perf_counter() - began
        if (now := time.perf_counter()) >= connect_at:
            for address, port in order["peers"]:  # some may not have heard of the torrent before
                handle.connect_peer((address, port))
            connect_at = now + RECONNECT_S
    raise RuntimeError(f"not complete after {PATIENCE_S} s: {handle.status().progress}")


def flush(session: Any, handle: Any) -> None:
    """Return when what was hashed is written too: libtorrent has it in memory first."""
    handle.flush_cache()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        session.wait_for_alert(WAIT_MS)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.cache_flushed_alert) and alert.handle == handle:
                return
    raise RuntimeError("libtorrent did not write what it had")


def main() -> None:
    session = make_session(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"version": lt.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "make" in order:
                make_torrent(order["make"], order["torrent"])
            elif "seed" in order:
                add(session, order["seed"], order["torrent"], seed=True)
            elif "fetch" in order:
                answer["seconds"] = fetch(session, order)
            else:
                for handle in session.get_torrents():
                    session.remove_torrent(handle)
        except (RuntimeError, OSError) as error:
            answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
