"""The next Root: which keys are replaced, and what follows from that.

Pure but for drawing keys. Whoever holds the root keys signs the Root that comes out
(`archid.central.root_keys`); putting it into force is `archid.central.root_desk`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from archid.central.keys import ONLINE_ROLES, SEAL, OnlineKeys
from archid.errors import Conflict, UsageError
from archid.net.certificates import make_ca
from protocol.envelope import PublicKey
from protocol.ids import KeyId
from protocol.limits import MAX_CA_CERTIFICATES, MAX_SERIAL
from protocol.root import RoleKeys, Root

REPLACEABLE = (*(role for role in ONLINE_ROLES if role != "ca"), SEAL)
"""What gets a new key unless a person says otherwise; the CA has a step of its own."""


@dataclass(frozen=True)
class RootChange:
    """What a person wants of the next Root."""

    roles: frozenset[str] = frozenset()
    new_ca: bool = False
    drop_old_cas: bool = False
    new_epoch: bool = False
    at_once: bool = False
    """Begin the epoch although central has not taken over yet what is newer than its database."""
    root_keys: tuple[PublicKey, ...] = ()
    """The new root keys; empty to keep the old ones."""

    def check(self) -> None:
        """Raise UsageError for a role that there is not, or for nothing to do."""
        if unknown := sorted(self.roles - set(REPLACEABLE)):
            raise UsageError(
                f"There is no online key {unknown[0]!r}",
                remedy=f"Name some of {', '.join(REPLACEABLE)}, or leave it out for all of them",
            )
        if not (self.roles or self.new_ca or self.drop_old_cas or self.new_epoch or self.root_keys):
            raise UsageError("Nothing of the Root would change")


@dataclass(frozen=True)
class NextRoot:
    """A Root that nobody has signed yet, and the keys that central signs with under it."""

    root: Root
    keys: OnlineKeys = field(repr=False)
    replaced: tuple[str, ...]
    """The roles whose key is another one, `seal` and `root` among them."""


def next_root(current: Root, keys: OnlineKeys, change: RootChange, *, now_s: int) -> NextRoot:
    """The Root after `current`. Keys that `current` does not name are replaced in any case.

    Raises UsageError, Conflict when the versions or the room for CAs have run out.
    """
    change.check()
    if current.version >= MAX_SERIAL or current.epoch >= MAX_SERIAL:
        raise Conflict("The versions of Root have run out", code="serials_exhausted")
    behind = {role for role in keys.private_keys if not _names(current, role, keys)}
    new_ca = change.new_ca or "ca" in behind
    roles = change.roles | behind | ({"ca"} if new_ca else set())
    renewed = keys.renewed(roles)

    changed = []
    for role in current.roles:
        if role.name in renewed.private_keys:
            role = _with_key(role, keys.public_key(role.name), renewed.public_key(role.name))
        elif change.root_keys and role.name in ("root", "software"):
            # Software updates run on every node, so their role goes with the root's.
            held = tuple(key.key_id for key in change.root_keys)
            role = RoleKeys(role.name, min(role.threshold, len(held)), held)
        changed.append(role)
    cas = _certificates(current, renewed, change, new_ca=new_ca)
    root = Root(
        fleet=current.fleet,
        fleet_name=current.fleet_name,
        version=current.version + 1,
        epoch=current.epoch + 1 if change.new_epoch else current.epoch,
        issued_s=now_s if change.new_epoch else max(now_s, current.issued_s),
        keys=_listed(changed, current.keys, change.root_keys, renewed),
        roles=tuple(changed),
        ca_certificates=cas,
        seal_keys=(renewed.public_seal_key,),
        policy=current.policy,
    )
    replaced = (*sorted(roles), *(["root"] if change.root_keys else []))
    return NextRoot(root, renewed, replaced)


def _names(root: Root, role: str, keys: OnlineKeys) -> bool:
    _, known = root.keys_of(role)
    return keys.public_key(role).key_id in known


def _with_key(role: RoleKeys, old: PublicKey, new: PublicKey) -> RoleKeys:
    """The role with our key replaced; one that did not name ours has only the new one."""
    if old.key_id not in role.key_ids:
        return RoleKeys(role.name, 1, (new.key_id,))
    key_ids = tuple(new.key_id if each == old.key_id else each for each in role.key_ids)
    return RoleKeys(role.name, role.threshold, key_ids)


def _certificates(
    current: Root, renewed: OnlineKeys, change: RootChange, *, new_ca: bool
) -> tuple[bytes, ...]:
    """The CAs, the one that issues first; older ones stay until a person drops them."""
    cas = current.ca_certificates
    if new_ca:
        cas = (make_ca(renewed.ca_key, current.fleet), *cas)
    elif change.drop_old_cas and len(cas) == 1:
        raise UsageError("Root names one CA only, so that there is no old one to drop")
    if change.drop_old_cas:
        cas = cas[:1]
    if len(cas) > MAX_CA_CERTIFICATES:
        raise Conflict(
            f"Root would name {len(cas)} CAs, and has room for {MAX_CA_CERTIFICATES}",
            remedy="Drop the old ones: archid root rotate --drop-old-ca",
            code="too_many_cas",
        )
    return cas


def _listed(
    roles: Iterable[RoleKeys],
    old: Iterable[PublicKey],
    root_keys: Iterable[PublicKey],
    renewed: OnlineKeys,
) -> tuple[PublicKey, ...]:
    """Every key that a role names, once."""
    online = [renewed.public_key(role) for role in renewed.private_keys]
    known: dict[KeyId, PublicKey] = {key.key_id: key for key in (*old, *root_keys, *online)}
    named = dict.fromkeys(key_id for role in roles for key_id in role.key_ids)
    return tuple(known[key_id] for key_id in named)
