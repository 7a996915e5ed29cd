"""The parameters with which content is cut into chunks: part of the format.

A manifest names its profile by number, so that a later one can be added without touching what
is published. Cutting itself needs files and a compiled library and lives in the store; a
receiver never cuts, it only checks chunks against their ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Profile:
    """FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking"), sizes in bytes.

    `average_bytes` is the nominal average that the masks are made from; cutting skips
    `minimum_bytes` first, so the real average is about 1.2 times larger (39 KiB in profile 1).
    """

    average_bytes: int
    minimum_bytes: int
    maximum_bytes: int
    normalization: int
    seed: int


DEFAULT_PROFILE: Final = 1
PROFILES: Final[dict[int, Profile]] = {
    1: Profile(
        average_bytes=32768, minimum_bytes=8192, maximum_bytes=131072, normalization=1, seed=0
    ),
}
