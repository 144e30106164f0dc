"""Tokens at rest: encrypted with the first of ALMONER_ENCRYPTION_KEYS, decrypted with any of them."""

import base64
import contextlib
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from worker.verify import fingerprint


class NotSealed(Exception):
    """It cannot be encrypted, or what was encrypted cannot be read; the message says which key is missing."""


class Seal:
    """Encrypts and decrypts. The keys may be any text: the real ones are derived from them (HKDF, RFC 5869)."""

    def __init__(self, keys: Sequence[str], what: str = "customers' tokens") -> None:
        """`what` is what they encrypt: what is of one kind cannot be put in the place of another."""
        self._what = what
        self._fernets = [Fernet(_derived(key, what)) for key in keys]
        self.fingerprint = fingerprint(keys[0]) if keys else None
        """Of the key that encrypts; None where there is no key."""

    def seal(self, plain: bytes) -> bytes:
        """Encrypt. Raises NotSealed where there is no key."""
        if not self._fernets:
            raise NotSealed(f"ALMONER_ENCRYPTION_KEYS is missing: {self._what} cannot be kept without it")
        return self._fernets[0].encrypt(plain)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt what any of the keys has encrypted. Raises NotSealed."""
        with contextlib.suppress(InvalidToken):
            if self._fernets:
                return MultiFernet(self._fernets).decrypt(sealed)
        raise NotSealed("none of ALMONER_ENCRYPTION_KEYS has encrypted this: put the older key behind")


def _derived(key: str, what: str) -> bytes:
    made = HKDF(algorithm=SHA256(), length=32, salt=None, info=f"almoner {what}".encode()).derive(key.encode())
    return base64.urlsafe_b64encode(made)
