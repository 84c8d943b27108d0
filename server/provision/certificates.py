"""The federation's own certificate authority, and the server's certificate that it signs.

Sites trust this authority and no other, so a proxy that opens TLS on the way is found out. The server's certificate
lasts a year and is renewed by `multimix-server rotate`. The authority lasts ten; where it has to change earlier, sites
trust the old and the new one for a while (docs of `rotate`). ECDSA on P-256, SHA-256, X.509 as RFC 5280.
"""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from multimix.config import Frozen
from multimix.errors import InputError

AUTHORITY_LASTS: Final = timedelta(days=3650)
SERVER_LASTS: Final = timedelta(days=365)
SOON: Final = timedelta(days=30)
_CLOCKS_DIFFER: Final = timedelta(days=1)  # a site's clock may be behind: certificates are valid from yesterday
_LONGEST_COMMON_NAME: Final = 64  # RFC 5280
_LOCAL: Final = ("localhost", "127.0.0.1")
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  (no name that anybody asks for)

State = Literal["good", "soon", "expired", "not_yet_valid", "not_served"]  # the last: another one is still shown


class Expiry(Frozen):
    """A certificate, and how long it is good for."""

    name: str  # of the file, with what it is
    expires: datetime
    days_left: int  # whole days, negative once expired
    state: State
    needed: bool  # without it no site can connect


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make the private key of a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(pem: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    """Read a private key; InputError `certificate_key_unusable`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("certificate_key_unusable", f"{name} is no private key of a certificate. Restore it.")
    return key


def read_certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    """Read a PEM file of certificates; InputError `certificate_unusable`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("certificate_unusable", f"{name} holds no certificate that can be read. Restore it.") from None


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def authority(federation: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Make the federation's authority, which can sign servers and no further authority."""
    # The year in the name tells two authorities of one federation apart in what a browser or a proxy shows.
    name = _name(f"{federation} authority {now:%Y-%m}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _begun(name, name, key.public_key(), now, AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )


def server_certificate(
    host: str,
    key: ec.EllipticCurvePrivateKey,
    signer: x509.Certificate,
    signer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    bind_host: str = "127.0.0.1",
) -> x509.Certificate:
    """Make the certificate of a server: good for its host, on its own machine, and where its proxy reaches it."""
    names = dict.fromkeys((host, *_LOCAL, *(() if bind_host in _EVERYWHERE else (bind_host,))))
    issuer_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key())
    return (
        _begun(_name(host), signer.subject, key.public_key(), now, SERVER_LASTS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(each) for each in names]), critical=False)
        .add_extension(issuer_identifier, critical=False)
        .sign(signer_key, SHA256())
    )


def belongs(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Say whether a certificate is the one of this private key."""
    return _raw(certificate.public_key()) == _raw(key.public_key())


def issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Say whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def expiry(certificate: x509.Certificate, name: str, now: datetime, *, needed: bool) -> Expiry:
    """Say how long a certificate is good for."""
    left = certificate.not_valid_after_utc - now
    state: State = "expired" if left <= timedelta(0) else "soon" if left < SOON else "good"
    if now < certificate.not_valid_before_utc:
        state = "not_yet_valid"  # this machine's clock is wrong
    return Expiry(name=name, expires=certificate.not_valid_after_utc, days_left=left.days, state=state, needed=needed)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    begins = now.astimezone(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - _CLOCKS_DIFFER)
        .not_valid_after(begins + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:_LONGEST_COMMON_NAME])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _raw(key: object) -> bytes | None:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
