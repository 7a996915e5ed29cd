"""The server of the other cinema asks everybody for what it may not have: its own sibling too."""

from __future__ import annotations

from archid.cli import figures
from protocol.ids import NodeId
from tests.demo.cast import LATE, OTHERS, REPOS, ROOMS
from tests.demo.refusal import ask_as, content_of
from tests.demo.stage import Stage
from tests.fleet.desk import node_id


def ask(stage: Stage) -> None:
    """All the right questions, by the wrong server; and by one that may ask them."""
    with stage.story.step() as notes:
        summary, central = stage.summary, stage.central
        asker, friend = stage.node(OTHERS[1]), stage.node(LATE)
        entitled: NodeId = node_id(friend)
        asker.process.stop()
        sibling = stage.node(OTHERS[0])
        servers = [stage.node(member) for member in (*REPOS, *ROOMS)]
        for peer in (central, *servers, sibling):
            notes.say(f"{asker.name} asks {peer.name} for everything")
            asked = ask_as(asker, peer, central, entitled)
            summary.refusals.append(asked)
            summary.failures += asked.failures()
            if asked.failures():
                notes.fail(f"{peer.name} does not refuse it")
        for other in (sibling, asker):
            lying = content_of(other.state)
            summary.content_at_other += len(lying)
            if lying:
                notes.fail(f"{other.name} holds what it was not granted")
                summary.failures.append(
                    f"{other.name} holds {figures.count(len(lying), 'file')} of scripts that are"
                    " not granted to its cinema"
                )
        # The same questions by somebody who may ask them: else silence would pass, too.
        repo = servers[0]
        summary.answered = ask_as(friend, repo, central, entitled)
        if summary.answered.span_bytes == 0:
            notes.fail("the questions are refused to everybody")
            summary.failures.append(
                f"{repo.name} refuses {friend.name}, which is entitled, too: the refusals prove"
                " nothing"
            )
        asker.process.start()
        if not notes.failed:
            count = sum(one.refused for one in summary.refusals)
            notes.say(f"{count} questions to {len(servers) + 2} nodes, {count} refusals, 0 bytes")
