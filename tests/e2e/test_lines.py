"""Lines with delay, loss and a rate, and what is left of networks whose maker was killed."""

from __future__ import annotations

import hashlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.hosts import Host, Internet, internet, require_tools
from tests.fleet.lines import LineShape
from tests.fleet.namespaces import in_namespace, namespaces, run_tool, sweep
from tests.fleet.scripts import noise

PAYLOAD_BYTES = 4 << 20
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7)) as stream:
    stream.sendall(sys.stdin.buffer.read())
"""
RECEIVE = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 7)) as server:
    print("listening", flush=True)
    stream, _ = server.accept()
    digest = hashlib.sha256()
    while data := stream.recv(1 << 20):
        digest.update(data)
    print(digest.hexdigest())
"""
LEFT_BEHIND = """
import subprocess, sys
from tests.fleet.hosts import internet
from tests.fleet.lines import LineShape
from tests.fleet.namespaces import in_namespace
with internet() as net:
    [host] = net.host(shape=LineShape(delay_ms=1))
    daemon = subprocess.Popen([*in_namespace(host.namespace), "sleep", "1000"],
                              start_new_session=True)
    print(daemon.pid, host.namespace, net.core, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def net() -> Iterator[Internet]:
    require_tools()
    with internet() as made:
        yield made


def send(source: Host, destination: Host, payload: bytes) -> str:
    """Over TCP; the digest of what came."""
    words = [*in_namespace(destination.namespace), sys.executable, "-c", RECEIVE]
    with subprocess.Popen([*words, destination.address], stdout=subprocess.PIPE) as receiving:
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == b"listening\n"
        subprocess.run(
            [*in_namespace(source.namespace), sys.executable, "-c", SEND, destination.address],
            input=payload,
            check=True,
            timeout=60,
        )
        return receiving.stdout.readline().decode().strip()


@pytest.mark.parametrize(
    "shape", [LineShape(delay_ms=3, loss=0.02), LineShape("50mbit", loss=0.02)]
)
def test_what_is_lost_on_the_way_is_sent_again_and_nothing_else_differs(
    net: Internet, shape: LineShape
) -> None:
    [near], [far] = net.host(), net.host(shape=shape)
    payload = b"".join(noise("wire", PAYLOAD_BYTES))
    expected = hashlib.sha256(payload).hexdigest()
    assert send(near, far, payload) == expected
    assert send(far, near, payload) == expected
    retransmitted = [
        int(dict(zip(names.split(), values.split(), strict=True))["RetransSegs"])
        for host in (near, far)
        for names, values in [re.findall(r"^Tcp: (.*)", tcp_counters(host), re.MULTILINE)]
    ]
    assert min(retransmitted) > 0, "both directions lose packets"
    assert far.line.received_bytes() > PAYLOAD_BYTES
    assert far.line.sent_bytes() > PAYLOAD_BYTES


def tcp_counters(host: Host) -> str:
    return run_tool("cat", "/proc/net/snmp", within=host.namespace)


def test_no_answer_is_back_before_it_can_be(net: Internet) -> None:
    [near], [far] = net.host(), net.host(shape=LineShape(delay_ms=25))
    told = run_tool("ping", "-c", "3", "-i", "0.05", "-q", far.address, within=near.namespace)
    found = re.search(r"= ([0-9.]+)/", told)
    assert found is not None
    assert float(found[1]) >= 50


def test_a_line_that_was_cut_and_healed_carries_again(net: Internet) -> None:
    cinema = net.cinema(shape=LineShape(delay_ms=1))
    [outside], server = net.host(), cinema.host()
    ping = ["ping", "-c", "1", "-W", "1", server.address]
    run_tool(*ping, within=outside.namespace)
    cinema.line.cut()
    cut = subprocess.run(
        [*in_namespace(outside.namespace), *ping], check=False, capture_output=True
    )
    assert cut.returncode != 0
    cinema.line.heal()
    run_tool(*ping, within=outside.namespace)


def test_what_a_killed_run_left_is_removed_by_the_next_with_its_processes() -> None:
    require_tools()
    left = subprocess.Popen(
        [sys.executable, "-c", LEFT_BEHIND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert left.stdin is not None
    assert left.stdout is not None
    daemon, *made = left.stdout.readline().decode().split()
    assert set(made) <= set(namespaces())
    sweep()
    assert set(made) <= set(namespaces()), "its maker still runs"
    watched = os.pidfd_open(int(daemon))
    left.send_signal(signal.SIGKILL)
    left.wait(30)
    left.stdout.close()
    left.stdin.close()
    sweep()
    assert not set(made) & set(namespaces())
    poller = select.poll()
    poller.register(watched, select.POLLIN)
    assert poller.poll(10_000), "a process of the killed run goes on"
    os.close(watched)


def test_a_rate_is_read_as_tc_reads_it() -> None:
    assert LineShape("20mbit").bits_per_s == 20e6
    assert LineShape().bits_per_s == float("inf")
    with pytest.raises(ValueError, match="20MB"):
        _ = LineShape("20MB").bits_per_s
