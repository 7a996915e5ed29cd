"""Root: which keys may sign what in a fleet, and what its certificates hang from.

Every Root is kept, and each is signed by the root role of the one before it and by its own
(`protocol.trust` checks that). The table of roles is open: a newer fleet may have roles that an
older node does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from protocol.canonical import Fields, Value
from protocol.documents import Document
from protocol.envelope import Envelope, PublicKey, count_valid
from protocol.errors import FormatError, TrustError
from protocol.ids import DocumentId, FleetId, KeyId
from protocol.limits import (
    MAX_CA_CERTIFICATES,
    MAX_CERTIFICATE_BYTES,
    MAX_KEYS,
    MAX_LABEL_BYTES,
    MAX_ROLE_NAME_BYTES,
    MAX_ROLES,
    MAX_ROOT_BYTES,
    MAX_SEAL_KEY_BYTES,
    MAX_SEAL_KEYS,
    MAX_SERIAL,
    MAX_SIGNATURES_BYTES,
    MAX_TIME_S,
)
from protocol.refusals import SignatureMissing

ROLES: Final = (
    "root",
    "head",
    "grants",
    "publish",
    "sync",
    "tickets",
    "instructions",
    "software",
    "ca",
)

POLICY_SAME_SITE_ONLY: Final = 1
"""ICE nodes serve nodes of their own site only."""


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who may act in one role: any `threshold` distinct keys of these."""

    name: str
    threshold: int
    key_ids: tuple[KeyId, ...]

    def __post_init__(self) -> None:
        if len(set(self.key_ids)) != len(self.key_ids):
            raise FormatError(f"role {self.name!r} names a key twice")
        if not 1 <= self.threshold <= len(self.key_ids):
            raise FormatError(
                f"role {self.name!r} wants {self.threshold} of {len(self.key_ids)} keys"
            )


@dataclass(frozen=True)
class Root(Document):
    """One version of the fleet's constitution.

    `seal_keys` are public keys to seal things for central, opaque here; `policy` is a set of
    bits (POLICY_...), of which unknown ones are ignored.
    """

    TYPE: ClassVar[str] = "root"
    MAX_BYTES: ClassVar[int] = MAX_ROOT_BYTES - MAX_SIGNATURES_BYTES

    fleet: FleetId
    fleet_name: str
    version: int
    epoch: int
    issued_s: int
    keys: tuple[PublicKey, ...]
    roles: tuple[RoleKeys, ...]
    ca_certificates: tuple[bytes, ...]
    seal_keys: tuple[bytes, ...] = ()
    policy: int = 0

    def __post_init__(self) -> None:
        known = {key.key_id for key in self.keys}
        if len(known) != len(self.keys):
            raise FormatError("root lists a key twice")
        names = [role.name for role in self.roles]
        if len(set(names)) != len(names):
            raise FormatError("root lists a role twice")
        for required in ("root", "head", "grants"):
            if required not in names:
                raise FormatError(f"root lacks the role {required!r}")
        for role in self.roles:
            if not known.issuperset(role.key_ids):
                raise FormatError(f"role {role.name!r} names a key that root does not list")

    @property
    def fingerprint(self) -> DocumentId:
        """What a joining token carries; the same as `id`."""
        return self.id

    @property
    def same_site_only(self) -> bool:
        """Whether ICE nodes may serve their own site only."""
        return bool(self.policy & POLICY_SAME_SITE_ONLY)

    def keys_of(self, role: str) -> tuple[int, Mapping[KeyId, PublicKey]]:
        """The threshold and keys of a role; raises TrustError when the Root has no such role."""
        for candidate in self.roles:
            if candidate.name == role:
                keys = {key.key_id: key for key in self.keys}
                return candidate.threshold, {key_id: keys[key_id] for key_id in candidate.key_ids}
        raise TrustError(f"root version {self.version} has no role {role!r}")

    def _fields(self) -> Sequence[Value]:
        return [
            self.fleet,
            self.fleet_name,
            self.version,
            self.epoch,
            self.issued_s,
            self.keys,
            [[role.name, role.threshold, role.key_ids] for role in self.roles],
            self.ca_certificates,
            self.seal_keys,
            self.policy,
        ]

    @classmethod
    def _parse(cls, fields: Fields) -> Self:
        return cls(
            fleet=fields.identity("fleet", FleetId),
            fleet_name=fields.text("fleet name", max_bytes=MAX_LABEL_BYTES),
            version=fields.integer("version", low=1, high=MAX_SERIAL),
            epoch=fields.integer("epoch", low=1, high=MAX_SERIAL),
            issued_s=fields.integer("issued", high=MAX_TIME_S),
            keys=fields.identities("keys", PublicKey, max_items=MAX_KEYS),
            roles=tuple(_role(item) for item in fields.array("roles", max_items=MAX_ROLES)),
            ca_certificates=fields.binaries(
                "ca certificates", max_items=MAX_CA_CERTIFICATES, max_bytes=MAX_CERTIFICATE_BYTES
            ),
            seal_keys=fields.binaries(
                "seal keys", max_items=MAX_SEAL_KEYS, max_bytes=MAX_SEAL_KEY_BYTES
            ),
            policy=fields.integer("policy"),
        )


def signed_by_role(envelope: Envelope, document_type: str, root: Root, role: str) -> bytes:
    """The payload, once enough distinct keys of `role` signed it as that type.

    Raises SignatureMissing, or TrustError when the Root has no such role.
    """
    threshold, keys = root.keys_of(role)
    valid = len(count_valid(envelope, document_type, keys))
    if valid < threshold:
        raise SignatureMissing(
            f"{document_type} is signed by {valid} keys of its role where {threshold} are needed"
        )
    return envelope.payload


def _role(item: Value) -> RoleKeys:
    fields = Fields(item, "role")
    return RoleKeys(
        name=fields.text("name", max_bytes=MAX_ROLE_NAME_BYTES),
        threshold=fields.integer("threshold", low=1, high=MAX_KEYS),
        key_ids=fields.identities("keys", KeyId, max_items=MAX_KEYS),
    )
