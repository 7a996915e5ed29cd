"""``python -m bench NAME...``: runs benchmarks, prints their tables, and keeps the figures.

``python -m bench compare A B`` runs nothing: it shows what became slower between two commits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from archid.errors import ArchidError
from archid.quantities import parse_size
from archid.store.tree_folder import remove_tree
from bench import (
    comparing,
    crowd,
    delta,
    history,
    idle,
    ingest,
    limits,
    long_line,
    pair,
    publishing,
    responsive,
    results,
    sites,
    swarm,
    tls_stream,
)
from bench.benchmark import Benchmark, Outcome
from bench.measuring import describe_machine
from bench.peers import PEERS
from bench.transfer import TransferFailed
from tests.fleet.local import CommandFailed
from tests.fleet.namespaces import NetworkFailed
from tests.fleet.process import DaemonFailed


def _chunking(base: Path, args: argparse.Namespace) -> Outcome:
    kept = base / "ingest.json"
    files = args.files or (20_000 if args.full else 5_000)
    ingest.main(
        ["--files", str(files), "--rounds", str(args.rounds or 3),
         "--folder", str(base), "--json", str(kept)]
    )  # fmt: skip
    return Outcome(json.loads(kept.read_text()), [])


def _tls_stream(base: Path, args: argparse.Namespace) -> Outcome:
    del base
    mib = (args.size or 512 << 20) >> 20
    figures = tls_stream.main(["--mib", str(mib), "--rounds", str(args.rounds or 3)])
    return Outcome(figures, [tls_stream.report(figures)])


BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    "pair": Benchmark(
        "one large file from one node to another", pair.pair, ("syncthing", "rsync", "libtorrent")
    ),
    "small": Benchmark(
        "many files of 16 KiB from one node to another",
        pair.small,
        ("syncthing", "rsync", "libtorrent"),
    ),
    "delta": Benchmark(
        "a new version to a node that holds the one before",
        delta.benchmark,
        ("rsync", "rsync-fuzzy"),
    ),
    "swarm": Benchmark(
        "one seed and many receivers with lines like its own", swarm.benchmark, ("libtorrent",)
    ),
    "sites": Benchmark(
        "four cinemas behind slow, long, lossy lines", sites.benchmark, ("libtorrent",)
    ),
    "long-line": Benchmark(
        "one server 100 ms away, with and without loss", long_line.benchmark, ("syncthing", "rsync")
    ),
    "crowd": Benchmark("many servers at once, from three REPOs and central", crowd.benchmark),
    "limits": Benchmark("how exact a limit is over some seconds", limits.benchmark),
    "responsive": Benchmark("control commands during a transfer", responsive.benchmark),
    "ingest": Benchmark("publishing a folder, against cp and sync", publishing.benchmark),
    "chunking": Benchmark("the CPU that publishing takes, against its chunking alone", _chunking),
    "idle": Benchmark(
        "memory, CPU, wake-ups and packets of a server at rest", idle.benchmark, ("syncthing",)
    ),
    "tls-stream": Benchmark("bytes through TLS alone", _tls_stream),
}


FAILURES: Final = (
    TransferFailed,
    ArchidError,
    CommandFailed,
    DaemonFailed,
    NetworkFailed,
    subprocess.CalledProcessError,
)
"""What a program under test, or a tool, may end with: the next benchmark goes on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns 1 when a program under test failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["compare"]:
        return _compare(words[1:])
    args = _parse(words)
    machine, commit = describe_machine(), history.commit_id()
    found: dict[str, Any] = {
        "machine": machine,
        "commit": commit,
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "full": args.full,
        "benchmarks": {},
    }
    print(f"{found['at']}, {machine}, commit {commit}")
    failed = False
    for name in args.names or BENCHMARKS:
        print(f"\n## {name}\n", flush=True)
        if args.folder is not None:
            args.folder.mkdir(parents=True, exist_ok=True)
        base = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=args.folder))
        benchmark = BENCHMARKS[name]
        try:
            outcome = benchmark.run(base, _with_peers(args, benchmark))
        except FAILURES as error:
            failed = True
            said = getattr(error, "output", None) or ""
            print(f"{name} failed: {error}\n{said}Its files are left in {base}", file=sys.stderr)
            continue
        except BaseException:  # it was stopped, or is wrong itself
            remove_tree(base)
            raise
        remove_tree(base)
        print(*outcome.tables, sep="\n\n", flush=True)
        found["benchmarks"][name] = outcome.figures
        history.append(args.history, machine, commit, name, outcome.figures)
        if args.results:
            results.keep(args.results, name, benchmark.what, outcome, found)
        if args.json:
            _keep(found, args.json)
    if args.results:
        print(f"\n{results.write_page(args.results, list(BENCHMARKS))}")
    return int(failed)


def _compare(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description="What became slower from commit A to commit B, by the newest runs of both"
        " of the same size on the same machine. Ends with 1 if something did.",
    )
    parser.add_argument("before", metavar="A")
    parser.add_argument("after", metavar="B")
    parser.add_argument("--history", type=Path, default=history.DEFAULT)
    args = parser.parse_args(words)
    commits = []
    for name in (args.before, args.after):
        bare = name.rstrip(history.CHANGED)
        commit = (history.resolve_commit(bare) or bare) + name[len(bare) :]
        if not history.of_commit(args.history, commit):
            parser.error(
                f"{args.history} has no run of {name}; check it out and run: python -m bench"
            )
        commits.append(commit)
    found = list(comparing.compare(args.history, *commits))
    if not found:
        parser.error("they have no benchmark of the same size on the same machine in common")
    print(*comparing.report(found, *commits), sep="\n")
    return int(any(change.is_worse for change in found))


def _keep(found: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(found, indent=1) + "\n")
    fresh.replace(path)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    listing = "\n".join(f"  {name:12}{one.what}" for name, one in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        usage="%(prog)s [NAME ...] [options]\n       %(prog)s compare A B",
        description="Benchmarks of archid beside its peers; all of them unless some are named:\n"
        f"{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run")
    parser.add_argument(
        "--peers", type=_peers, help=f"{','.join(PEERS)}; all with --full, else those nearest to it"
    )
    parser.add_argument(
        "--full", action="store_true", help="the sizes that goals are set for; else all end soon"
    )
    parser.add_argument("--size", type=parse_size, help="of large files: 2GiB")
    parser.add_argument("--files", type=int, help="how many small files")
    parser.add_argument("--rounds", type=int, help="how often each is measured, 3 unless told")
    parser.add_argument("--rate", help="of the lines of swarm, sites and long-line: 100mbit")
    parser.add_argument("--folder", type=Path, help="where the files under test go")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--results", type=Path, help="also write tables and pictures here")
    parser.add_argument("--history", type=Path, default=history.DEFAULT, help="is appended to")
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - BENCHMARKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    asked = [(args.rounds, 1), (args.files, 2), (args.size, 1 << 20)]
    if any(value is not None and value < least for value, least in asked):
        parser.error("at least 1 round, 2 files and 1MiB")
    args.folder = args.folder or _roomiest()
    return args


def _with_peers(args: argparse.Namespace, benchmark: Benchmark) -> argparse.Namespace:
    usual = tuple(PEERS) if args.full else benchmark.quick_peers
    return argparse.Namespace(
        **{**vars(args), "peers": usual if args.peers is None else args.peers}
    )


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(part for part in text.split(",") if part)
    if unknown := set(names) - PEERS.keys():
        raise argparse.ArgumentTypeError(f"unknown peer: {', '.join(sorted(unknown))}")
    return names


def _roomiest() -> Path:
    """The usual folder for temporary files is memory on many machines: then the other one."""
    folders = [Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108 - only as a parent
    return max(folders, key=lambda folder: shutil.disk_usage(folder).free)


if __name__ == "__main__":
    # As Ctrl-C does: what was started and the networks that were made go with their blocks.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
