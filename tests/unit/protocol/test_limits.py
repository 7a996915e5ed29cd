"""The limits in the code are those in the specification."""

from __future__ import annotations

import re
from pathlib import Path

import protocol
from protocol import limits

ROW = re.compile(r"\| `([A-Z_]+)` \| (\d+) \| (.+) \|")


def test_the_specification_lists_every_limit_with_its_value() -> None:
    chapter = (Path(protocol.__path__[0]) / "SPEC.md").read_text().split("\n## 12. Limits\n")[1]
    listed = {name: int(value) for name, value, _ in ROW.findall(chapter)}
    units = {"KIB", "MIB"}
    in_code = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert listed == {name: value for name, value in in_code.items() if name not in units}


def test_a_signed_document_fits_its_frame() -> None:
    assert limits.MAX_DOCUMENT_BYTES < limits.MAX_FRAME_BYTES
    assert limits.MAX_HEAD_BYTES + limits.MAX_PROOF_BYTES < limits.MAX_FRAME_BYTES
    entry = 2 + 32 + 2 + 64 + 1
    assert limits.MAX_SIGNATURES * entry + 64 <= limits.MAX_SIGNATURES_BYTES


def test_what_central_keeps_accepted_fits_a_head() -> None:
    reference = 2 + 32
    denial = 1 + 1 + limits.MAX_TYPE_BYTES + 1 + 2 * reference
    most = limits.MAX_ACCEPTED_GRANTS * reference + limits.MAX_DENIED * denial + 512
    assert most <= limits.MAX_HEAD_BYTES - limits.MAX_SIGNATURES_BYTES
