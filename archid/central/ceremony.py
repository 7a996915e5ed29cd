"""Founding a fleet: what ``archid init`` does, once, on a new central.

Everything is checked before anything is written, and what was written is taken away again when a
later step fails. The last file is `identity/fleet.json`: without it the state belongs to no fleet
yet. The root keys are used here once, to sign the first Root, and are never in the state folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archid.addresses import Address
from archid.central.estate import Place, add_node, check_node_name
from archid.central.kept_documents import keep_documents, trust_state
from archid.central.keys import OnlineKeys, keys_folder
from archid.central.release_definition import check_label
from archid.central.root_keys import check_passphrase, public_key, sign_root, write_root_keys
from archid.central.signed_state import SignedState
from archid.central.signing import sign_state
from archid.central.store import DEFAULT_FILE_NAME, CentralDatabase, database_url
from archid.central.tables import fleet, roots
from archid.errors import Conflict, UsageError
from archid.identity import Identity
from archid.membership import FILE_NAME, Membership
from archid.net.certificates import issue, make_ca
from archid.store.documents import DocumentStore
from archid.store.layout import StateLock, StatePaths
from archid.store.trust_file import TrustFile
from protocol.ids import DIGEST_BYTES, FleetId
from protocol.root import RoleKeys, Root

DEFAULT_HEAD_LIFETIME_S: Final = 7 * 86400
MAX_ROOT_KEYS: Final = 16
_OFFLINE_ROLES: Final = ("root", "software")


@dataclass(frozen=True)
class Founding:
    """What a person decides when a fleet is founded."""

    fleet_name: str
    node_name: str
    root_key_file: Path
    advertise: Sequence[Address]
    site: str = ""
    database: str = ""
    root_keys: int = 1
    root_threshold: int = 1
    head_lifetime_s: int = DEFAULT_HEAD_LIFETIME_S

    def check(self, paths: StatePaths) -> None:
        """Raise UsageError for what cannot be, Conflict for what is there already."""
        try:
            check_label(self.fleet_name)
        except ValueError as error:
            raise UsageError(f"This cannot be the name of a fleet: {error}") from error
        check_node_name(self.node_name)
        Place("central", self.site).check()
        if not 1 <= self.root_threshold <= self.root_keys <= MAX_ROOT_KEYS:
            raise UsageError(
                f"{self.root_threshold} of {self.root_keys} root keys cannot be asked for",
                remedy=f"Use 1 to {MAX_ROOT_KEYS} keys, and at most as many signatures as keys",
            )
        target = self.root_key_file.absolute()
        if target.resolve().is_relative_to(paths.state.resolve()):
            raise UsageError(
                f"The root keys would lie in central's state ({target})",
                remedy="Name a file elsewhere, best on a medium that you can take away",
            )
        if target.exists():
            raise Conflict(
                f"{target} exists already and is not overwritten",
                remedy="Name another file for the root keys",
            )
        if not target.parent.is_dir():
            raise UsageError(
                f"The folder {target.parent} for the root keys does not exist",
                remedy="Make it first, or name a file elsewhere",
            )


@dataclass(frozen=True)
class Founded:
    """The new fleet."""

    fleet: FleetId
    identity: Identity
    root: Root
    root_key_file: Path
    state: SignedState


def initialise(
    founding: Founding,
    *,
    paths: StatePaths,
    passphrase: str,
    now: float,
    allow_short_passphrase: bool = False,
    player_gid: int | None = None,
    as_caller: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Founded:
    """Found a fleet in a fresh state folder. Blocks for about a second.

    The root keys' file is written and looked at inside `as_caller`: the state may be written as
    another user than the one whose file that is.
    Raises UsageError for bad input, Conflict when the state or the root keys' file exists
    already, StorageError when something cannot be written.
    """
    check_passphrase(passphrase, allow_short=allow_short_passphrase)
    _check_fresh(paths)
    with as_caller():
        founding.check(paths)
    paths.prepare(player_gid=player_gid)
    with StateLock(paths.lock):
        _check_fresh(paths)
        root_keys = [Ed25519PrivateKey.generate() for _ in range(founding.root_keys)]
        with _undone_on_failure(paths, founding, as_caller):
            with as_caller():
                write_root_keys(
                    founding.root_key_file, root_keys, passphrase, fleet_name=founding.fleet_name
                )
            return _found(founding, paths, root_keys, int(now))


def _found(
    founding: Founding, paths: StatePaths, root_keys: Sequence[Ed25519PrivateKey], now_s: int
) -> Founded:
    keys = OnlineKeys.generate()
    keys.save(paths.state)
    identity = Identity.create(paths.state)
    fleet_id = FleetId(os.urandom(DIGEST_BYTES))
    ca = make_ca(keys.ca_key, fleet_id)
    identity = identity.with_certificate(
        issue(keys.ca_key, ca, identity.public_key, identity.node_id)
    )
    root = _first_root(founding, fleet_id, root_keys, keys, ca, now_s)
    root_envelope = sign_root(root, root_keys)

    database = CentralDatabase.open(database_url(founding.database, paths.state), create=True)
    try:
        with database.write() as connection:
            if connection.execute(sa.select(fleet.c.only)).first() is not None:
                raise Conflict(
                    "The database of this central holds a fleet already",
                    remedy="Name an empty database in [central] database",
                )
            connection.execute(
                fleet.insert().values(
                    only=1,
                    fleet=fleet_id,
                    name=founding.fleet_name,
                    central_node=identity.node_id,
                    founded_s=now_s,
                )
            )
            connection.execute(roots.insert().values(version=1, envelope=root_envelope))
            add_node(
                connection,
                name=founding.node_name,
                place=Place("central", founding.site),
                key=identity.public_key,
                now_s=now_s,
                ready=True,
            )
            state = sign_state(
                connection,
                keys,
                now_s=now_s,
                lifetime_s=founding.head_lifetime_s,
                reason="the fleet was founded",
                refresh=True,
            )
            if state is None:
                raise AssertionError("the first head was not signed")
    finally:
        database.close()
    keep_documents(state, DocumentStore(paths.documents))
    TrustFile(paths.trust).save(trust_state(state))
    Membership(
        fleet=fleet_id,
        fleet_name=founding.fleet_name,
        anchor=root.fingerprint,
        anchor_version=root.version,
        central_addresses=tuple(founding.advertise),
    ).save(paths.identity)
    return Founded(fleet_id, identity, root, founding.root_key_file, state)


def _first_root(
    founding: Founding,
    fleet_id: FleetId,
    root_keys: Sequence[Ed25519PrivateKey],
    keys: OnlineKeys,
    ca: bytes,
    now_s: int,
) -> Root:
    public_root_keys = [public_key(key) for key in root_keys]
    root_key_ids = tuple(key.key_id for key in public_root_keys)
    # Software updates run on every node, so their role stays offline with the root's.
    roles = [RoleKeys(role, founding.root_threshold, root_key_ids) for role in _OFFLINE_ROLES]
    roles += [RoleKeys(role, 1, (keys.public_key(role).key_id,)) for role in keys.private_keys]
    return Root(
        fleet=fleet_id,
        fleet_name=founding.fleet_name,
        version=1,
        epoch=1,
        issued_s=now_s,
        keys=(*public_root_keys, *(keys.public_key(role) for role in keys.private_keys)),
        roles=tuple(roles),
        ca_certificates=(ca,),
        seal_keys=(keys.public_seal_key,),
    )


def _check_fresh(paths: StatePaths) -> None:
    """Raise Conflict unless the state folder belongs to no node and no fleet."""
    if (paths.identity / FILE_NAME).exists():
        raise Conflict(
            f"The state folder {paths.state} belongs to a fleet already",
            remedy="Use another state folder for another fleet",
            code="initialised",
        )
    left_over = (
        paths.identity / "key.pem",
        keys_folder(paths.state),
        paths.trust,
        paths.state / DEFAULT_FILE_NAME,
    )
    if found := [path for path in left_over if path.exists()]:
        raise Conflict(
            f"{found[0]} is left over from an init or a join that was interrupted",
            remedy=f"Remove the folder {paths.state}, and the root keys' file if there is one,"
            " then repeat",
            code="initialised",
        )


@contextlib.contextmanager
def _undone_on_failure(
    paths: StatePaths, founding: Founding, as_caller: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Take away what was written if the fleet does not come to be; nothing of it was in use."""
    with as_caller():
        existed = founding.root_key_file.exists()
    try:
        yield
    except BaseException:
        database = paths.state / DEFAULT_FILE_NAME
        written = [paths.trust, *(Path(f"{database}{end}") for end in ("", "-wal", "-shm"))]
        if not existed:
            with as_caller(), contextlib.suppress(OSError):
                founding.root_key_file.unlink(missing_ok=True)
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for folder in (paths.identity, paths.documents):
            shutil.rmtree(folder, ignore_errors=True)
        raise
