"""Every limit of the protocol, in one place.

Bytes from outside are checked against these before anything is allocated for them. SPEC.md
chapter 12 lists the same numbers and says what each one protects. They are part of the format:
raising one needs a feature that both ends announce, since an older node refuses what is over
its own.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Encodings and frames
MAX_NESTING: Final = 16
"""How deep arrays may be nested in one encoded value, the outermost counted as 1."""
MAX_FRAME_BYTES: Final = 2 * MIB
"""The payload of one frame; single frame types allow less."""
MAX_DOCUMENT_BYTES: Final = 1 * MIB
"""Any signed document in its envelope, a leaf with its path, the index of a paged list."""
MAX_HEAD_BYTES: Final = 64 * KIB
"""A Head in its envelope: it travels most often, so it is held smallest."""
MAX_PROOF_BYTES: Final = 8 * KIB
MAX_OUTSTANDING_REQUESTS: Final = 32

# Signatures and keys
MAX_SIGNATURES: Final = 32
MAX_SIGNATURES_BYTES: Final = 4 * KIB
"""What an envelope may add to its payload."""
MAX_KEYS: Final = 256
MAX_ROLES: Final = 32
MAX_ROLE_NAME_BYTES: Final = 32
MAX_CA_CERTIFICATES: Final = 16
MAX_CERTIFICATE_BYTES: Final = 4 * KIB
MAX_SEAL_KEYS: Final = 16
MAX_SEAL_KEY_BYTES: Final = 64
MAX_TYPE_BYTES: Final = 32
"""The type text at the start of a signed document."""

# Trust documents
MAX_SERIAL: Final = 2**53 - 1
"""Versions, epochs, serials and generations: what every language reads exactly."""
MAX_TIME_S: Final = 253_402_300_799
"""9999-12-31T23:59:59Z."""
MAX_DENIED: Final = 256
MAX_ACCEPTED_GRANTS: Final = 48
MAX_LEAVES: Final = 1_000_000
MAX_LEAF_ITEMS: Final = 65536
MAX_ITEM_BYTES: Final = 2 * KIB
MAX_MERKLE_DEPTH: Final = 40
MAX_LIST_PAGES: Final = 16_384
MAX_PAGE_BYTES: Final = 64 * KIB
MAX_ROW_BYTES: Final = 4 * KIB
PAGE_TARGET_BYTES: Final = 16 * KIB
PAGE_MIN_BYTES: Final = 4 * KIB
MAX_LIST_ROWS: Final = 4_000_000
MAX_LABEL_BYTES: Final = 200
"""Names of fleets, nodes, sites, rooms, releases and things."""

# Content
MAX_CHUNK_BYTES: Final = 131_072
SPAN_TARGET_BYTES: Final = 1 * MIB
MAX_SPAN_CHUNKS: Final = 512
MAX_PIECE_BYTES: Final = 128 * KIB
MAX_MANIFEST_BYTES: Final = 1 * MIB
"""The root of a manifest; its pieces come one by one."""
MAX_PATH_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
"""One part of a path."""
MAX_PATH_DEPTH: Final = 64
MAX_SCRIPT_NAME_BYTES: Final = 120
MAX_FILE_BYTES: Final = 2**44
MAX_TREE_BYTES: Final = 2**46
MAX_ENTRIES: Final = 4_000_000
MAX_CHUNKS: Final = 2**24
"""Of one manifest, repeats included: a layout takes some 40 bytes for each."""

# Connections
MAX_ROOT_BYTES: Final = 128 * KIB
"""A Root in its envelope: it is taken from peers that have proven nothing yet."""
MAX_GRANTS_ROOT_BYTES: Final = 8 * KIB
"""A Grants or Syncs root in its envelope."""
MAX_UNKNOWN_FRAME_BYTES: Final = 64 * KIB
"""A frame of an unknown optional type, which is skipped without being kept."""
MAX_PROVES: Final = 4
"""How often one side may show its proof before it is welcomed."""
MAX_FEATURES: Final = 64
MAX_FEATURE_BYTES: Final = 40
MAX_SOFTWARE_BYTES: Final = 80
MAX_ERROR_TEXT_BYTES: Final = 300
MAX_PIECES_ASKED: Final = 16
MAX_DELTA_BASES: Final = 32
"""Pieces that a request names as what deltas may refer to."""
MAX_DELTA_RANGES: Final = 8192
"""Of one delta: more than a piece with a change in every other record has."""
MAX_PIECES: Final = 32_768
"""Pieces of one manifest that a have-map may speak of."""
MAX_HAVE_BITMAP_BYTES: Final = 256
"""One bit a span of one piece."""
MAX_ANY_PIECES: Final = 16
"""Pieces in one request for any of several spans."""
MAX_HINTS: Final = 256
MAX_HOLDERS_TOLD: Final = 32
"""Nodes in one answer about who holds a version."""
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_BYTES: Final = 300
"""`host:port`."""
MAX_JOIN_ROOTS: Final = 64
"""Roots, oldest first, from the one that the token names to the newest."""

# States of nodes

MAX_STATE_BYTES: Final = 32 * KIB
MAX_STATE_REASONS: Final = 8
MAX_STATE_RELEASES: Final = 64
MAX_STATE_HOLDINGS: Final = 256
MAX_STATES_SENT: Final = 16
"""States in one message."""
MAX_DIGEST_ROWS: Final = 512
