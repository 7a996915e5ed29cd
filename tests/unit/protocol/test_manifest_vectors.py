"""The golden vectors of manifests: frozen, made again by today's code, and read from the file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.ids import ManifestId, PieceId
from protocol.layout import Layout
from protocol.manifest import ManifestRoot
from tests.vectors import make_content

FROZEN: dict[str, Any] = json.loads(make_content.MANIFEST.read_text())


def test_the_file_is_what_the_generator_makes() -> None:
    assert make_content.text(make_content.manifest_vectors()) == make_content.MANIFEST.read_text()


@pytest.mark.parametrize("row", FROZEN["trees"], ids=lambda row: str(row["tree"]))
def test_a_frozen_root_is_read_with_its_id_and_pieces(row: dict[str, Any]) -> None:
    root = ManifestRoot.decode(bytes.fromhex(row["root"]))
    assert root.id == ManifestId.from_hex(row["manifest"])
    assert [[ref.id.hex(), *ref[1:]] for ref in root.pieces] == row["pieces"]
    if "piece" in row:
        data = bytes.fromhex(row["piece"])
        layout = Layout(root, [data])
        assert PieceId.of(data).hex() == row["pieces"][0][0]
        assert len(layout.spans) == len(row["spans"])
