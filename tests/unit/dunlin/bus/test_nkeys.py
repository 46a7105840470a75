"""Nkeys: texts that NATS' own tools made, and texts that are broken."""

import base64
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dunlin.bus import nkeys
from dunlin.bus.nkeys import NkeyError, key_pair, parse, parse_seed, read, seed_text

# From the documentation of NATS' tool nk: a seed, its public key, and a signature.
SEED = "SUAKYRHVIOREXV7EUZTBHUHL7NUMHPMAS7QMDU3GTIUWEI5LDNOXD43IZY"
PUBLIC = "UD466L6EBCM3YY5HEGHJANNTN4LSKTSUXTH7RILHCKEQMQHTBNLHJJXT"
SIGNED = "Hello World!\n"
SIGNATURE = "0CK1XmkxNfUGfudxliWTWeoETgIo23m9qowS9yTfYFSrjR8HgAW63jQ3NxPU_jG38hZPW61IZSun37N690CkDg"
# From docs.nats.io, "NKeys".
DOCUMENTED = {
    SEED: PUBLIC,
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY": (
        "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    ),
}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
CREDENTIALS = f"""-----BEGIN NATS USER JWT-----
eyJ0.e30.c2ln
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""


@pytest.mark.parametrize(("seed", "public"), DOCUMENTED.items())
def test_public_keys_are_those_of_nats(seed: str, public: str) -> None:
    """A documented seed gives the documented public key, and reads back the same."""
    assert key_pair(seed).public == public
    assert seed_text(parse_seed(seed)) == seed


def test_signatures_are_those_of_nats() -> None:
    """Ed25519 has one signature for a key and a text: it is the one that nk made."""
    signature = base64.urlsafe_b64decode(SIGNATURE + "==")
    assert key_pair(SEED).sign(SIGNED) == base64.b64encode(signature)


@given(st.binary(min_size=32, max_size=32))
def test_every_key_reads_back(key: bytes) -> None:
    """32 bytes of any kind are a seed of 58 characters, with or without white space around."""
    text = seed_text(key)
    assert text.startswith("SU")
    assert len(text) == 58
    assert parse_seed(f" {text}\n") == key


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 55),
    st.text(ALPHABET, min_size=1, max_size=3),
)
def test_a_corrupt_seed_never_passes(key: bytes, index: int, letters: str) -> None:
    """One to three letters in a row, 15 bits: a CRC-16 sees every such change."""
    good = seed_text(key)
    bad = good[:index] + letters + good[index + len(letters) :]
    assume(bad != good)
    with pytest.raises(NkeyError):
        parse_seed(bad)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 57))
def test_a_lost_letter_never_passes(key: bytes, index: int) -> None:
    """Whichever it is; nor one that stands twice."""
    good = seed_text(key)
    for bad in (good[:index] + good[index + 1 :], good[:index] + good[index] + good[index:]):
        with pytest.raises(NkeyError):
            parse_seed(bad)


@given(st.text(max_size=80) | st.text(ALPHABET, min_size=50, max_size=66).map("SU".__add__))
def test_whatever_is_read_is_a_seed_or_an_error(text: str) -> None:
    """Nothing but NkeyError comes out, and what passes is spelt as nkeys spells it."""
    try:
        said, key = "", parse_seed(text)
    except NkeyError as error:
        said, key = str(error), None
    assert len(text) < 12 or text not in said, "an error must not repeat a secret"
    assert key is None or seed_text(key) == text.strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (PUBLIC, "a public key: expected the seed"),
        ("P" + SEED[1:], "a private key"),
        ("SA" + SEED[2:], "a seed, but not of a user"),
        ("AD" + PUBLIC[2:], "not of a user"),
        ("hunter2", "no nkey"),
        (SEED[:-1], "57 characters: a seed has 58"),
        (SEED[:-1] + "A", "checksum"),
        (SEED[:30] + "QQ" + SEED[32:], "checksum"),
        (SEED.replace("R", "1"), "not base32"),
        (CREDENTIALS.replace("END NATS USER JWT", ""), "no end"),
        (CREDENTIALS.replace("BEGIN USER NKEY SEED", ""), "without a seed"),
        (CREDENTIALS.replace(SEED, PUBLIC), "a public key"),
    ],
)
def test_errors_say_what_is_wrong_and_no_secret(tmp_path: Path, text: str, said: str) -> None:
    """The file's name and what it holds instead; not its text."""
    file = tmp_path / "seed"
    file.write_text(text, encoding="ascii")
    with pytest.raises(NkeyError, match=said) as caught:
        read(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert SEED[8:40] not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_files_that_are_no_text_or_not_there_are_named(tmp_path: Path) -> None:
    """As it is for whoever mounted the wrong thing."""
    for path, said in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(NkeyError, match=said) as caught:
            read(str(path))
        assert str(path) in str(caught.value)
    file = tmp_path / "seed"
    for data, said in ((b"\xff\xfe", "not text"), (b"A" * 70_000, "too large")):
        file.write_bytes(data)
        with pytest.raises(NkeyError, match=said):
            read(str(file))


def test_user_credentials_hold_both() -> None:
    """The JWT as it is, and the key pair of the seed."""
    found = parse(CREDENTIALS)
    assert (found.public, found.jwt) == (PUBLIC, "eyJ0.e30.c2ln")
    assert SEED not in repr(found)
    assert nkeys.parse(SEED).jwt == ""
