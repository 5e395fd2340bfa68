"""The API's certificate: made on request, checked before it is served, watched until it ends."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from s5jtd.api.tokens import already_there, read_secret, write_new
from s5jtd.errors import ConfigError, UsageError

CERTIFICATE = "api.crt"
KEY = "api.key"
#: As long as browsers allow for a certificate of one's own.
VALID_DAYS = 825
_BACKDATED_DAYS = 1  # so that it is valid already for clients whose clocks are behind
_MAKE = "bring one from your own CA, or make one: s5jtd api cert DIR"


def context(certificate: Path, key: Path, now: datetime) -> tuple[ssl.SSLContext, datetime]:
    """What to serve with, and when the certificate ends.

    Raises:
        ConfigError: no client would or should accept it.
    """
    ends = _ends(certificate)
    # One that is not valid yet is served: an appliance without a battery may boot into the past.
    if ends <= now:
        raise ConfigError(f"{certificate} ended on {ends:%Y-%m-%d}", hint=_MAKE)
    read_secret(key, "the private key", _MAKE)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.options |= ssl.OP_NO_RENEGOTIATION
    tls.set_alpn_protocols(["http/1.1"])
    try:
        # A password, although there is none: otherwise OpenSSL would ask for it on a terminal.
        tls.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key} is no key without a password, or not the one of {certificate}:"
            f" {getattr(error, 'reason', None) or error}",
            hint=_MAKE,
        ) from None
    return tls, ends


def _ends(certificate: Path) -> datetime:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except OSError as error:
        raise ConfigError(
            f"cannot read {certificate}, the certificate: {error.strerror or error}", hint=_MAKE
        ) from None
    except ValueError:
        raise ConfigError(f"{certificate} is no certificate in PEM form", hint=_MAKE) from None


def create(folder: Path, hosts: tuple[str, ...], now: datetime) -> tuple[Path, str]:
    """Write a key and its self-signed certificate for this machine and `hosts`.

    Returns the certificate's path, and the SHA-256 fingerprint by which people recognise it.

    Raises:
        UsageError: a file is there already, or cannot be made; a host is no name.
    """
    names = [_name(host) for host in dict.fromkeys((*hosts, socket.gethostname(), *_LOOPBACK))]
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, names, now)
    paths = folder / CERTIFICATE, folder / KEY
    for path in paths:  # before either is written: half a pair helps nobody
        if path.exists():
            raise already_there(path)
    write_new(
        paths[1],
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        mode=0o600,
    )
    write_new(paths[0], certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return paths[0], certificate.fingerprint(hashes.SHA256()).hex(":").upper()


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except UnicodeError:
        raise UsageError(f"{host!r} is neither an address nor the name of a host") from None


def _self_signed(
    key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName], now: datetime
) -> x509.Certificate:
    """A certificate that also the strict rules of newer Pythons take for its own authority."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s5jtd log API")])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=_BACKDATED_DAYS))
        .not_valid_after(now + timedelta(days=VALID_DAYS - _BACKDATED_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(identity, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False
        )
    )
    return builder.sign(key, hashes.SHA256())


def now() -> datetime:
    """The time certificates are held against."""
    return datetime.now(UTC)
