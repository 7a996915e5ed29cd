"""``python -m bench NAME...``: runs benchmarks, prints their tables, and keeps the figures."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from archid.quantities import parse_size
from archid.store.tree_folder import remove_tree
from bench import idle, ingest, pair, tls_stream
from bench.inputs import InputShape
from bench.measuring import describe_machine
from bench.peers import PEERS
from bench.transfer import TransferFailed
from tests.fleet.scripts import FEATURE

SMALL_FILE_BYTES: Final = 16 * 1024


def _pair(base: Path, args: argparse.Namespace) -> dict[str, Any]:
    return _transfers(base, InputShape(1, args.size), args)


def _small(base: Path, args: argparse.Namespace) -> dict[str, Any]:
    return _transfers(base, InputShape(args.files, SMALL_FILE_BYTES), args)


def _transfers(base: Path, shape: InputShape, args: argparse.Namespace) -> dict[str, Any]:
    figures = pair.summary(pair.run(base, shape, peers=args.peers, rounds=args.rounds), shape)
    print(*pair.report(figures, shape), sep="\n")
    return {"shape": asdict(shape), "programs": figures}


def _idle(base: Path, args: argparse.Namespace) -> dict[str, Any]:
    found = idle.run(base, FEATURE, peers=args.peers)
    print(*idle.report(found), sep="\n")
    return {name: None if one is None else asdict(one) for name, one in found.items()}


def _ingest(base: Path, args: argparse.Namespace) -> dict[str, Any]:
    kept = base / "ingest.json"
    ingest.main(
        ["--files", str(args.files), "--rounds", str(args.rounds), "--folder", str(base),
         "--json", str(kept)]
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(kept.read_text())
    return figures


def _tls_stream(base: Path, args: argparse.Namespace) -> dict[str, Any]:
    del base
    return tls_stream.main(["--mib", str(args.size >> 20), "--rounds", str(args.rounds)])


BENCHMARKS: Final[
    Mapping[str, tuple[Callable[[Path, argparse.Namespace], dict[str, Any]], str]]
] = {
    "pair": (_pair, "one large file from one node to another"),
    "small": (_small, "many files of 16 KiB from one node to another"),
    "ingest": (_ingest, "publishing, against chunking and hashing alone"),
    "idle": (_idle, "memory, CPU and wake-ups of a server at rest"),
    "tls-stream": (_tls_stream, "bytes through TLS alone"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns 1 when a program under test failed."""
    args = _parse(arguments)
    results: dict[str, Any] = {"machine": describe_machine(), "benchmarks": {}}
    print(results["machine"])
    failed = False
    for name in args.names or BENCHMARKS:
        print(f"\n## {name}\n", flush=True)
        base = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=args.folder))
        try:
            results["benchmarks"][name] = BENCHMARKS[name][0](base, args)
        except TransferFailed as error:
            failed = True
            print(f"{name} failed: {error}\nIts files are left in {base}", file=sys.stderr)
        else:
            remove_tree(base)
        if args.json:
            _keep(results, args.json)
    return int(failed)


def _keep(results: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    fresh.replace(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    listing = "\n".join(f"  {name:12}{what}" for name, (_, what) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Benchmarks of archid beside its peers; all of them unless some are named:\n"
        f"{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run")
    parser.add_argument("--peers", type=_peers, default=tuple(PEERS), help=",".join(PEERS))
    parser.add_argument("--size", type=parse_size, default=512 << 20, help="of pair: 2GiB")
    parser.add_argument("--files", type=int, default=20_000, help="of small and ingest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files under test go")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - BENCHMARKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if args.rounds < 1 or args.files < 2 or args.size < 1 << 20:
        parser.error("at least 1 round, 2 files and 1MiB")
    args.folder = args.folder or _roomiest()
    return args


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
    sys.exit(main())
