"""Who this node is: its Ed25519 key, its id and the certificate that the fleet's CA gave it.

The id is the digest of the node's *first* key and is kept in a file of its own, because it stays
when the key is replaced. The private key never leaves this machine and is readable by its owner
only. What the fleet says about the node (role, site, room) is not here: that is in Grants.

On disk, in ``<state>/identity`` (0700): ``node`` (hexadecimal id), ``key.pem`` (PKCS #8) and,
once the node has joined, ``certificate.pem``, all 0600.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from archid.errors import ArchidError, Conflict, NotFound, StorageError
from protocol.envelope import PublicKey, Signature, signing_input
from protocol.errors import FormatError
from protocol.ids import NodeId

FOLDER_NAME: Final = "identity"
_NEXT_CERTIFICATE: Final = "certificate-next.pem"
_MAX_FILE_BYTES: Final = 65536


@dataclass(frozen=True)
class Identity:
    """A node's own key and id, loaded from its state folder."""

    node_id: NodeId
    private_key: Ed25519PrivateKey = field(repr=False)
    public_key: PublicKey
    folder: Path
    certificate: bytes | None = field(default=None, repr=False)
    """The DER certificate, or None before the node has joined a fleet."""

    @property
    def key_path(self) -> Path:
        """PEM file of the private key, in the form that `ssl` loads."""
        return self.folder / "key.pem"

    @property
    def certificate_path(self) -> Path:
        """PEM file of the certificate; exists once `certificate` is set."""
        return self.folder / "certificate.pem"

    @classmethod
    def create(cls, state: Path) -> Self:
        """Draw a new key in ``state/identity``, durably. Raises Conflict when there is one."""
        folder = state / FOLDER_NAME
        if (folder / "key.pem").exists():
            raise Conflict(
                f"{folder} already holds the key of a node",
                remedy="use another state folder, or run 'archid leave' to give this one up",
            )
        private_key = Ed25519PrivateKey.generate()
        public_key = PublicKey(private_key.public_key().public_bytes_raw())
        node_id = NodeId.of(public_key)
        pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            # The key comes last: without it the folder counts as empty and can be filled again.
            _write_private(folder / "node", f"{node_id}\n".encode())
            _write_private(folder / "key.pem", pem)
        except OSError as error:
            raise _not_written(folder, error) from error
        return cls(node_id, private_key, public_key, folder)

    @classmethod
    def load(cls, state: Path) -> Self:
        """Read ``state/identity``.

        Raises NotFound when the state belongs to no node yet, StorageError when files are
        missing, damaged, readable by others, or do not belong together.
        """
        folder = state / FOLDER_NAME
        pem = _read(folder / "key.pem")
        if pem is None and (folder / "node").exists():
            raise _damaged(folder / "key.pem", "is missing")
        if pem is None:
            raise NotFound(
                f"{state} holds no identity",
                remedy="make a fleet with 'archid init' or join one with 'archid join'",
            )
        if (folder / "key.pem").stat().st_mode & 0o077:
            raise StorageError(
                f"Other users may read the private key {folder / 'key.pem'}",
                remedy=f"run 'chmod 600 {folder / 'key.pem'}', and replace the key if it leaked",
            )
        try:
            private_key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _damaged(folder / "key.pem") from error
        if not isinstance(private_key, Ed25519PrivateKey):
            raise _damaged(folder / "key.pem")
        written = _read(folder / "node") or b""
        try:
            node_id = NodeId.from_hex(written.decode("ascii").strip())
        except (FormatError, UnicodeDecodeError) as error:
            raise _damaged(folder / "node") from error
        if written != f"{node_id}\n".encode():
            # A flipped bit may make a capital of a letter, which means the same and is damage.
            raise _damaged(folder / "node")
        public_key = PublicKey(private_key.public_key().public_bytes_raw())
        certificate = _read(folder / "certificate.pem")
        der = None
        if certificate is not None:
            try:
                parsed = x509.load_pem_x509_certificate(certificate)
                same_key = parsed.public_key() == private_key.public_key()
            except (ValueError, UnsupportedAlgorithm) as error:
                raise _damaged(folder / "certificate.pem") from error
            if not same_key:
                raise _damaged(folder / "certificate.pem")
            der = parsed.public_bytes(Encoding.DER)
        return cls(node_id, private_key, public_key, folder, der)

    def with_certificate(self, der: bytes) -> Self:
        """Store the certificate durably and return the identity that has it.

        Raises StorageError when it cannot be written. Whether the fleet's CA signed it is for
        the caller to check.
        """
        pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        try:
            _write_private(self.certificate_path, pem)
        except OSError as error:
            raise _not_written(self.certificate_path, error) from error
        return replace(self, certificate=der)

    def next_certificate(self) -> bytes | None:
        """The certificate (DER) that waits for the old CA to go; None when there is none to use."""
        data = _read(self.folder / _NEXT_CERTIFICATE)
        if data is None:
            return None
        try:
            parsed = x509.load_pem_x509_certificate(data)
            if parsed.public_key() != self.private_key.public_key():
                return None
        except (ValueError, UnsupportedAlgorithm):
            return None  # it can be had again
        return parsed.public_bytes(Encoding.DER)

    def keep_next_certificate(self, der: bytes) -> None:
        """Store a certificate that is not shown yet. Raises StorageError."""
        path = self.folder / _NEXT_CERTIFICATE
        try:
            _write_private(path, x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        except OSError as error:
            raise _not_written(path, error) from error

    def sign(self, document_type: str, payload: bytes) -> Signature:
        """Sign `payload` as a document of this type with the node's current key."""
        value = self.private_key.sign(signing_input(document_type, payload))
        return Signature(self.public_key.key_id, value)


def _read(path: Path) -> bytes | None:
    """The file's bytes, None when it does not exist. Raises StorageError."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _write_private(path: Path, data: bytes) -> None:
    """Replace `path` atomically and durably with a file that only its owner may read."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _damaged(path: Path, how: str = "is damaged or does not belong to this node") -> ArchidError:
    return StorageError(
        f"{path} {how}",
        remedy="restore the identity folder from a backup, or run archid leave and join again",
    )


def _not_written(path: Path, error: OSError) -> ArchidError:
    return StorageError(
        f"{path} cannot be written: {error.strerror}",
        remedy="check the free space and the owner of the state folder",
    )
