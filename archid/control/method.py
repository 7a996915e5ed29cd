"""What describes one request of the control socket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from archid.control.shapes import TEXT, Schema, opened, text
from archid.errors import UsageError

ALL_ROLES: Final = ("central", "repo", "ice")


@dataclass(frozen=True)
class Method:
    """One request of the control socket."""

    name: str
    params: Schema
    result: Schema
    changes: bool = False
    takes_input: bool = False
    roles: tuple[str, ...] = ALL_ROLES
    events: Schema = field(default_factory=lambda: opened(event=TEXT))

    def of_another_role(self, role: str) -> UsageError:
        """Why a node of `role` does not answer it."""
        meant = " or ".join(role_words(each) for each in self.roles)
        return UsageError(
            f"This node is {role_words(role)}, and what was asked is for {meant} only",
            remedy="Run the command on that machine; where several daemons run on one machine,"
            " --config or --socket says which is meant",
            code="wrong_role",
        )


_ROLE_WORDS: Final = {"central": "central", "repo": "a REPO", "ice": "an ICE server"}


def role_words(role: str) -> str:
    """A role as a sentence has it: "an ICE server"."""
    return _ROLE_WORDS.get(role, f"of the role {role}")


NAME: Final = text(max_length=200, min_length=1)
PLACE: Final = text(max_length=200)
