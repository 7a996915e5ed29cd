"""The keys with which central signs day by day, and the secret behind the salts.

One file each in `<state>/identity/keys` (0700), readable by their owner only. Root keys are never
here: see `archid.central.root_keys`. Which key may sign what is written in Root; this module only
holds them and signs what it is told to.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from archid.errors import ArchidError, Conflict, StorageError
from protocol.envelope import Envelope, PublicKey, Signature, signing_input
from protocol.root import Root

SEAL: Final = "seal"
"""Not a role: the key with which others seal things for central."""
ONLINE_ROLES: Final = ("head", "grants", "publish", "sync", "tickets", "instructions", "ca")
SALT_BYTES: Final = 16
_SECRET_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 4096


def keys_folder(state: Path) -> Path:
    """Where central's online keys are."""
    return state / "identity" / "keys"


@dataclass(frozen=True)
class OnlineKeys:
    """Every online role's private key; nothing of it is ever shown or logged."""

    private_keys: Mapping[str, Ed25519PrivateKey] = field(repr=False)
    seal_key: X25519PrivateKey = field(repr=False)
    salt_secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Draw a new set; `save` keeps it."""
        return cls(
            {role: Ed25519PrivateKey.generate() for role in ONLINE_ROLES},
            X25519PrivateKey.generate(),
            os.urandom(_SECRET_BYTES),
        )

    def renewed(self, roles: Collection[str]) -> Self:
        """A set with new keys for these roles, `seal` among them; the others stay.

        The secret behind the salts stays as well: with another one every leaf would change.
        """
        return replace(
            self,
            private_keys={
                role: Ed25519PrivateKey.generate() if role in roles else key
                for role, key in self.private_keys.items()
            },
            seal_key=X25519PrivateKey.generate() if SEAL in roles else self.seal_key,
        )

    def save(self, state: Path) -> None:
        """Write the keys durably; raises Conflict when there are some already, StorageError."""
        self._save(keys_folder(state))

    def save_next(self, state: Path) -> None:
        """Write the keys beside those in use, for when a Root names them; raises StorageError."""
        folder = _next_folder(state)
        shutil.rmtree(folder, ignore_errors=True)
        self._save(folder)

    def _save(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError as error:
            raise Conflict(
                f"{folder} already holds the keys of a central",
                remedy="Use another state folder for another fleet",
            ) from error
        except OSError as error:
            raise _not_written(folder, error) from error
        try:
            for role, key in self.private_keys.items():
                write_private(folder / f"{role}.pem", _pem(key))
            write_private(folder / "seal.pem", _pem(self.seal_key))
            write_private(folder / "salt", self.salt_secret.hex().encode() + b"\n")
        except OSError as error:
            raise _not_written(folder, error) from error

    @classmethod
    def load(cls, state: Path) -> Self:
        """Read the keys; raises StorageError when one is missing, damaged or others may read it."""
        return cls.load_from(keys_folder(state))

    @classmethod
    def load_from(cls, folder: Path) -> Self:
        """The same from a folder that is named."""
        private_keys: dict[str, Ed25519PrivateKey] = {}
        for role in ONLINE_ROLES:
            key = _load_key(folder / f"{role}.pem")
            if not isinstance(key, Ed25519PrivateKey):
                raise _damaged(folder / f"{role}.pem")
            private_keys[role] = key
        seal_key = _load_key(folder / "seal.pem")
        if not isinstance(seal_key, X25519PrivateKey):
            raise _damaged(folder / "seal.pem")
        try:
            secret = bytes.fromhex(_read_private(folder / "salt").decode("ascii"))
        except (ValueError, UnicodeDecodeError) as error:
            raise _damaged(folder / "salt") from error
        if len(secret) != _SECRET_BYTES:
            raise _damaged(folder / "salt")
        return cls(private_keys, seal_key, secret)

    def public_key(self, role: str) -> PublicKey:
        """The public half of a role's key."""
        return PublicKey(self.private_keys[role].public_key().public_bytes_raw())

    def fit(self, root: Root) -> bool:
        """Whether `root` names every one of these keys for its role."""
        return all(self._fits(role, root) for role in self.private_keys)

    def _fits(self, role: str, root: Root) -> bool:
        _, known = root.keys_of(role)
        return self.public_key(role).key_id in known

    def check(self, root: Root) -> None:
        """Raise Conflict (keys_behind) unless these are keys that `root` names for their roles."""
        for role in self.private_keys:
            if not self._fits(role, root):
                raise Conflict(
                    f"Central's key for the role {role} is not one of Root version {root.version}",
                    remedy="Restore a backup from after that Root was made, or replace the keys"
                    " with the root keys: archid root rotate",
                    code="keys_behind",
                )

    @property
    def public_seal_key(self) -> bytes:
        """What others seal things for central with (X25519, 32 bytes)."""
        return self.seal_key.public_key().public_bytes_raw()

    @property
    def ca_key(self) -> Ed25519PrivateKey:
        """The key of the fleet's CA."""
        return self.private_keys["ca"]

    def sign(self, role: str, document_type: str, payload: bytes) -> Signature:
        """Sign with the key of a role."""
        value = self.private_keys[role].sign(signing_input(document_type, payload))
        return Signature(self.public_key(role).key_id, value)

    def envelope(self, role: str, document_type: str, payload: bytes) -> bytes:
        """The encoded envelope of a payload signed by one role."""
        return Envelope(payload, (self.sign(role, document_type, payload),)).encode()

    def salt(self, item: bytes) -> bytes:
        """The salt of a leaf's item: always the same for the same item, a secret to others."""
        return hmac.digest(self.salt_secret, b"archid leaf item v1\0" + item, hashlib.sha256)[
            :SALT_BYTES
        ]


def take_up_next(state: Path, root: Root) -> None:
    """Put the keys that wait beside those in use into their place, if `root` names them.

    After a crash between signing a Root and this, it is done at the next start. Keys that no Root
    names belong to a replacement that was given up, and go. Raises StorageError.
    """
    folder, waiting = keys_folder(state), _next_folder(state)
    if not waiting.exists():
        return
    try:
        # Those in use are gone when a crash came between the two renames below.
        if not folder.exists() or _fits(waiting, root):
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            waiting.rename(folder)
            _sync(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        else:
            shutil.rmtree(waiting, ignore_errors=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Make a new file that only its owner may read, durably. Raises OSError, never overwrites."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _fits(folder: Path, root: Root) -> bool:
    try:
        return OnlineKeys.load_from(folder).fit(root)
    except StorageError:
        return False  # a crash came while they were written


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _next_folder(state: Path) -> Path:
    return keys_folder(state).with_name("keys.next")


def _pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise StorageError(
                    f"Other users may read central's key {path}",
                    remedy=f"Run 'chmod 600 {path}', and replace the key if it leaked",
                )
            return file.read(_MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise StorageError(
            f"Central's key {path} is missing",
            remedy="Restore the folder identity/keys from a backup",
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _load_key(path: Path) -> object:
    try:
        return load_pem_private_key(_read_private(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ArchidError:
    return StorageError(
        f"Central's key {path} is damaged",
        remedy="Restore the folder identity/keys from a backup",
    )


def _not_written(path: Path, error: OSError) -> ArchidError:
    return StorageError(
        f"{path} cannot be written: {error.strerror}",
        remedy="Check the free space and the owner of the state folder",
    )
