"""A byte is flipped in a REPO's tree: it is not given out, it is repaired, and somebody is told."""

from __future__ import annotations

import time
from pathlib import Path

import trio

from archid.addresses import parse_address
from archid.store.documents import DocumentStore
from archid.store.layout import StatePaths
from archid.store.layouts import Layouts
from protocol.ids import ManifestId
from protocol.messages import Entitle, GetSpan
from tests.demo.breaking import flip_a_byte, largest_file
from tests.demo.cast import LATE, ROTTEN, Fault, script_name
from tests.demo.comparing import sha256_of
from tests.demo.stage import Stage
from tests.demo.summary import Rotted
from tests.fleet.desk import node_id
from tests.fleet.events import EventTap
from tests.fleet.insider import InsiderKnowledge
from tests.fleet.local import FleetNode
from tests.fleet.probe import Probe, Reply


def rot(stage: Stage) -> None:
    """Flip, ask for it, and wait until the byte is what it was."""
    with stage.story.step(f"one bit in the Feature at {ROTTEN.name}") as notes:
        repo, asker = stage.node(ROTTEN), stage.node(LATE)
        tree = (repo.scripts / "scripts" / script_name("feature")).resolve()
        file = largest_file(tree)
        name = str(file.relative_to(tree))
        whole = _digest(file)
        stage.expect_errors(ROTTEN)
        with EventTap(repo) as tap:
            began = time.monotonic()
            at = file.stat().st_size // 2
            if not stage.has(Fault.ROT):
                flip_a_byte(file)
            reply = _ask_for_byte(stage, asker, repo, ManifestId.from_hex(tree.name), name, at)
            if reply.code is None:
                notes.fail(f"{repo.name} gave out what it cannot have verified")
                stage.summary.failures.append(
                    f"{repo.name} answered {asker.name}, which asked for the flipped byte, as if"
                    " nothing were wrong"
                )
                return
            notes.say(f"{repo.name} refuses to give it out: {reply.code.name_text}")
            alarm = tap.wait("alarm", lambda event: event["manifest"] == tree.name)
            tap.wait("tree.repaired", lambda event: event["manifest"] == tree.name)
            took_s = time.monotonic() - began
        if stage.has(Fault.REPAIR):
            flip_a_byte(file)
        repaired = _digest(file) == whole
        stage.summary.rot = Rotted(
            repo.name, name, reply.code.name_text, alarm["sentence"], repaired, took_s
        )
        if not repaired:
            notes.fail(f"{repo.name} says that it repaired it, and did not")
            stage.summary.failures.append(f"The file {name} at {repo.name} is not repaired")
            return
        notes.say(f"not given out ({reply.code.name_text}), reported, repaired in {took_s:.1f} s")


def _digest(file: Path) -> str:
    return sha256_of(file.parent, [file.name], lambda _files: None)[file.name]


def _ask_for_byte(
    stage: Stage, asker: FleetNode, peer: FleetNode, manifest: ManifestId, path: str, at: int
) -> Reply:
    """What an entitled server, whose daemon is off, hears when it asks for the span of a byte."""
    paths = StatePaths(peer.state, peer.scripts)
    layout = Layouts(DocumentStore(paths.documents)).get(manifest)
    file = next(one for one in layout.files if one.path == path)
    inside = [
        file.first_chunk + number
        for number, (start, _) in enumerate(layout.chunks_of(file))
        if start <= at
    ]
    home = layout.home(inside[-1])
    span = next(one for one in layout.spans if home in one.chunks)
    known = InsiderKnowledge.of(stage.central.state)
    proof = known.stolen_proof(node_id(asker), manifest)

    async def ask() -> Reply:
        async with Probe(asker.state).connect(parse_address(peer.address)) as asked:
            entitled = await asked.ask(Entitle(1, manifest, proof))
            assert entitled.code is None, entitled
            return await asked.ask(GetSpan(1, manifest, span.piece, span.n, b""))

    return trio.run(ask)
