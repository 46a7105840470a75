"""
A certificate authority and a server certificate, kept in the data directory.

kubectl sends a bearer token over TLS only, so the lab's server speaks TLS by default.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

_LIFE = dt.timedelta(days=3650)
_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files: what clients trust, and what the server shows and holds."""

    authority: Path
    certificate: Path
    key: Path


def certificates_in(directory: Path, host: str) -> Certificates:
    """Return the certificates for an address or a name, made at the first call."""
    found = Certificates(directory / "ca.crt", directory / "server.crt", directory / "server.key")
    if not all(path.exists() for path in (found.authority, found.certificate, found.key)):
        _make(found, host)
    return found


def signing_key_in(directory: Path) -> Path:
    """Return the PEM file of a private key for tokens (ES256), made at the first call."""
    path = directory / "signing.key"
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        # kube-apiserver reads the public key from it too, and for that wants this form.
        form = serialization.PrivateFormat.TraditionalOpenSSL
        _write_private(
            path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        )
    return path


def _write_private(path: Path, pem: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(pem)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
    authority: ec.EllipticCurvePublicKey, *, is_ca: bool,
) -> x509.CertificateBuilder:  # fmt: skip
    now = dt.datetime.now(dt.UTC)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=is_ca, crl_sign=is_ca,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
        )
    )


def _names_of(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    for item in dict.fromkeys((host, "127.0.0.1", "::1")):
        try:
            names.append(x509.IPAddress(ip_address(item)))
        except ValueError:
            names.append(x509.DNSName(item))
    return names


def _make(paths: Certificates, host: str) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    issuer, public = _name("dunlin-lab-ca"), authority_key.public_key()
    authority = _builder(issuer, issuer, public, public, is_ca=True).sign(
        authority_key, hashes.SHA256()
    )
    server = (
        _builder(_name("kube-apiserver"), issuer, server_key.public_key(), public, is_ca=False)
        .add_extension(x509.SubjectAlternativeName(_names_of(host)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    _write_private(paths.key, server_key.private_bytes(pem, form, serialization.NoEncryption()))
    paths.certificate.write_bytes(server.public_bytes(pem))
    paths.authority.write_bytes(authority.public_bytes(pem))
