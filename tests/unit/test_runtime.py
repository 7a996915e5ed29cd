"""What a daemon sets for its own process, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
from archid.daemon.runtime import SWITCH_INTERVAL_S, give_back_memory, prepare_process
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def resident_kib():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])

prepare_process()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
assert soft == hard
assert abs(sys.getswitchinterval() - SWITCH_INTERVAL_S) < 1e-6
def use():
    blocks = [bytearray(b"x") * 1_000_000 for _ in range(24)]
    del blocks

if sys.argv[1] == "thread":
    worker = threading.Thread(target=use)
    worker.start()
    worker.join()
else:
    use()
kept = resident_kib()
give_back_memory()
print(kept - resident_kib())
"""


@pytest.mark.parametrize("user", ["main", "thread"])
def test_a_process_keeps_freed_memory_until_it_rests(user: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, user],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 16_000
