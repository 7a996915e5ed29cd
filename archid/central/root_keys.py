"""The root keys' file: encrypted under a passphrase, made once, to be put away.

Whoever holds it and the passphrase can replace every other key of the fleet, so it never lies in
central's state. The passphrase is stretched (`archid.central.sealing`) and the keys are sealed with
AES-256-GCM, the header included. The file is text, so that it survives a printer, and says in words
what it is.
"""

from __future__ import annotations

import base64
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archid.central.keys import write_private
from archid.central.sealing import Stretching
from archid.errors import Conflict, Denied, NotFound, StorageError, UsageError
from protocol.canonical import Fields, pack, unpack
from protocol.envelope import Envelope, PublicKey, Signature, signing_input
from protocol.errors import ProtocolError
from protocol.root import Root

MIN_PASSPHRASE_CHARACTERS: Final = 12
_TYPE: Final = "archid root keys"
_BEGIN: Final = "-----BEGIN ARCHID ROOT KEYS-----"
_END: Final = "-----END ARCHID ROOT KEYS-----"
_BODY: Final = re.compile(f"{_BEGIN}\n(.*?){_END}", re.DOTALL)
_MAX_FILE_BYTES: Final = 16384


def check_passphrase(passphrase: str, *, allow_short: bool = False) -> None:
    """Raise UsageError when the passphrase is empty or, unless allowed, shorter than 12."""
    if not passphrase:
        raise UsageError("The passphrase for the root keys is empty", code="passphrase")
    if len(passphrase) < MIN_PASSPHRASE_CHARACTERS and not allow_short:
        raise UsageError(
            f"The passphrase has {len(passphrase)} characters; it protects the whole fleet",
            remedy=f"Use at least {MIN_PASSPHRASE_CHARACTERS}, for instance five random words",
            code="passphrase",
        )


def write_root_keys(
    path: Path, keys: Sequence[Ed25519PrivateKey], passphrase: str, *, fleet_name: str
) -> None:
    """Write the encrypted keys to a new file (0600).

    Raises Conflict when `path` exists, StorageError when it cannot be written.
    """
    stretching, nonce = Stretching.draw(), os.urandom(12)
    header = pack([_TYPE, 1, *stretching.to_values(), nonce])
    secret = pack([key.private_bytes_raw() for key in keys])
    sealed = AESGCM(stretching.key(passphrase)).encrypt(nonce, secret, header)
    body = textwrap.fill(base64.b64encode(pack([header, sealed])).decode(), 64)
    text = (
        f"Root keys of the archid fleet {fleet_name!r}.\n"
        "Put this file away, off this machine, and the passphrase elsewhere.\n"
        "It is needed to replace keys of the fleet, never day by day.\n\n"
        f"{_BEGIN}\n{body}\n{_END}\n"
    )
    try:
        write_private(path, text.encode())
    except FileExistsError as error:
        raise Conflict(
            f"{path} exists already and is not overwritten",
            remedy="Name another file for the root keys",
        ) from error
    except OSError as error:
        raise StorageError(
            f"The root keys cannot be written to {path}: {error.strerror}",
            remedy="Name a file in a folder that exists and can be written",
        ) from error


def sign_root(root: Root, keys: Iterable[Ed25519PrivateKey]) -> bytes:
    """The envelope of a Root with a signature by each of these keys, none of them twice."""
    payload = root.encode()
    content = signing_input(Root.TYPE, payload)
    found = {public_key(key).key_id: key for key in keys}
    signatures = tuple(Signature(key_id, key.sign(content)) for key_id, key in found.items())
    return Envelope(payload, signatures).encode()


def public_key(key: Ed25519PrivateKey) -> PublicKey:
    """The public half of a root key."""
    return PublicKey(key.public_key().public_bytes_raw())


def load_root_keys(path: Path, passphrase: str) -> tuple[Ed25519PrivateKey, ...]:
    """Decrypt the keys; raises NotFound, Denied for a wrong passphrase, StorageError if damaged."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode("ascii", "replace")
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path} with root keys") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    match = _BODY.search(text.replace("\r\n", "\n"))
    if match is None:
        raise StorageError(f"{path} does not hold root keys of archid")
    try:
        outer = Fields(
            unpack(base64.b64decode(match[1]), max_bytes=_MAX_FILE_BYTES), "the root keys' file"
        )
        header = outer.binary("header", max_bytes=512)
        sealed = outer.binary("keys", max_bytes=_MAX_FILE_BYTES)
        fields = Fields(unpack(header, max_bytes=512), "the root keys' header")
        fields.constant("type", _TYPE)
        fields.constant("format", 1)
        stretching = Stretching.read(fields)
        nonce = fields.binary("nonce", max_bytes=12)
        secret = AESGCM(stretching.key(passphrase)).decrypt(nonce, sealed, header)
        raw_keys = Fields([unpack(secret, max_bytes=_MAX_FILE_BYTES)], "the root keys")
        return tuple(
            Ed25519PrivateKey.from_private_bytes(raw_key)
            for raw_key in raw_keys.binaries("keys", max_items=32, max_bytes=32)
        )
    except InvalidTag as error:
        raise Denied(
            f"The passphrase does not open {path}, or the file is damaged",
            remedy="Type it again; there is no other way to open the file",
            code="passphrase",
        ) from error
    except (ProtocolError, ValueError) as error:
        raise StorageError(f"The root keys in {path} are damaged: {error}") from error
