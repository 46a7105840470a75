"""
NATS nkeys: ed25519 seeds and public keys as text, signatures of a server's nonce.

Text is base32 without padding of: one byte for what it is (two for a seed), 32 bytes of key, and a
CRC-16 (XMODEM), low byte first; github.com/nats-io/nkeys describes it. `SU…` is the seed of a user,
secret; `U…` is its public key, which the server's configuration holds.
"""

import base64
import binascii
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

KEY_BYTES = 32
CHECKSUM_BYTES = 2
SEED_PREFIX = bytes([0x95, 0x00])
"""Of a user: the bits of "seed" (18 << 3), then those of "user" (20 << 3) from the sixth on."""
PUBLIC_PREFIX = bytes([20 << 3])
PRIVATE_KEY = "P"
OTHER_PUBLIC = frozenset("ACNOX")
"""First letters of public keys of accounts, clusters, servers, operators, curves."""
SEED_LETTERS = 58
SIZE_MAX = 64 * 1024
"""Of a file of credentials, bytes: more is something else."""

_JWT = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT")
_SEED = re.compile(r"BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED")


class NkeyError(ValueError):
    """No seed of a user; says what is wrong and never repeats the text."""


class Credentials(msgspec.Struct, frozen=True):
    """Who a client is: its key pair, and its JWT where the server wants one."""

    public: str
    """U…; the server looks for it in its configuration."""
    sign: Callable[[str], bytes]
    """The server's nonce -> base64 of its signature, as CONNECT carries it."""
    jwt: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.public})"


def _text(prefix: bytes, key: bytes) -> str:
    body = prefix + key
    checksum = binascii.crc_hqx(body, 0).to_bytes(CHECKSUM_BYTES, "little")
    return base64.b32encode(body + checksum).decode().rstrip("=")


def seed_text(key: bytes) -> str:
    """`SU…` of 32 bytes that are as random as they must be secret."""
    assert len(key) == KEY_BYTES
    return _text(SEED_PREFIX, key)


def parse_seed(text: str) -> bytes:
    """
    The 32 bytes in `SU…`.

    Raises:
        NkeyError: anything else.
    """
    text = text.strip()
    if not text:
        raise NkeyError("it is empty: expected an nkey seed, SU…")
    if not text.startswith("SU"):
        raise NkeyError(f"{_what(text)}: expected the seed of a user, SU…")
    if len(text) != SEED_LETTERS:
        raise NkeyError(f"{len(text)} characters: a seed has {SEED_LETTERS}")
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        raise NkeyError("it is not base32: A-Z, 2-7") from None
    key = raw[len(SEED_PREFIX) : -CHECKSUM_BYTES]
    # Written again it must be the same: prefix, checksum, and the two bits that belong to no byte.
    if seed_text(key) != text:
        raise NkeyError("its checksum is wrong: a character is lost or changed")
    return key


def _what(text: str) -> str:
    """What a text that is no user's seed looks like, by its first letters alone."""
    first = text[0]
    if first == "U":
        return "a public key"
    if first == PRIVATE_KEY:
        return "a private key"
    if first in OTHER_PUBLIC:
        return "a public key, and not of a user"
    if first == "S":
        return "a seed, but not of a user"
    return "no nkey"


def key_pair(text: str, jwt: str = "") -> Credentials:
    """
    What signs with this seed.

    Raises:
        NkeyError: it is none.
    """
    # 15 ms and libsodium: only where there is a seed.
    from nacl.signing import SigningKey

    key = SigningKey(parse_seed(text))

    def sign(nonce: str) -> bytes:
        return base64.b64encode(key.sign(nonce.encode()).signature)

    return Credentials(_text(PUBLIC_PREFIX, bytes(key.verify_key)), sign, jwt)


def parse(text: str) -> Credentials:
    """
    A seed alone, or NATS user credentials: a JWT and a seed, each between its marks.

    Raises:
        NkeyError: neither.
    """
    if len(text) > SIZE_MAX:
        raise NkeyError("too large for credentials")
    if "BEGIN NATS USER JWT" not in text:
        return key_pair(text)
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None:
        raise NkeyError("its user JWT has no end")
    if seed is None:
        raise NkeyError("a user JWT without a seed")
    return key_pair(seed[1], jwt[1])


def read(path: str) -> Credentials:
    """
    The credentials in a file.

    Raises:
        NkeyError: naming the file and what is wrong with it.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(SIZE_MAX + 1)
        return parse(data.decode("ascii"))
    except OSError as error:
        raise NkeyError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise NkeyError(f"{path}: not text") from None
    except NkeyError as error:
        raise NkeyError(f"{path}: {error}") from None
