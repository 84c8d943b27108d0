"""Making a federation, and its certificates over time.

An authority is replaced in three steps, so that no site is ever cut off: first kits carry both authorities (`both`),
then, once every site has joined with such a kit, the server shows a certificate of the new one (`renew`), and at last
the old one is no longer trusted (`forget_old`). One command changes them at a time, and each step may be cut short by a
crash and run again: which authority signs is told by `ca.key`, and the newest stands first in `ca.pem`. What the server
and the proxy show changes when they are restarted, so that is looked at, not only the file.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from multimix.errors import InputError
from multimix.files import write_atomically
from server.provision.certificates import (
    Expiry,
    authority,
    belongs,
    expiry,
    issued,
    key_pem,
    new_key,
    pem_of,
    read_certificates,
    read_key,
    server_certificate,
)
from server.provision.folder import FILE, FederationFolder, FederationSettings, editing, write_settings
from server.provision.tls import Look, Shown, shown

Clock = Callable[[], datetime]
_NEXT_KEY: Final = "ca.key.new"  # of an authority that is being made


def utcnow() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def new_federation(path: Path, settings: FederationSettings, *, now: Clock = utcnow) -> FederationFolder:
    """Make a federation's folder, closed to other users: authority, server certificate, the coordinator's key.

    `federation.toml` is written last: a folder without it was cut short, holds nothing that anyone has seen, and is
    refused all the same, since a key in it may be somebody's.

    Raises:
        InputError: `federation_exists`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "A federation is" if (path / FILE).exists() else "Something is"
        raise InputError("federation_exists", f"{what} here already. Nothing was changed: give another --federation.")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    folder = FederationFolder(path, settings)
    key = new_key()
    write_atomically(folder.ca_key, key_pem(key))
    write_atomically(folder.ca, pem_of(authority(settings.name, key, now())), mode=0o644)
    coordinator = Ed25519PrivateKey.generate()
    write_atomically(folder.coordinator, coordinator.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _renew(folder, now)
    for each in (folder.runs, folder.flower):
        each.mkdir(mode=0o700)
    return write_settings(folder, settings)


def renew(folder: FederationFolder, *, switch: bool = False, now: Clock = utcnow) -> None:
    """Give the server a new key and certificate; the SuperLink and the proxy show it once they are restarted.

    `switch` says that every site trusts the new authority, where there is one.

    Raises:
        InputError: `authority_changes` where it would be by another authority without `switch`, and with it
            `rotation_half_done` or `switched_already`; `authority_missing`, `authority_expired`, and as `editing` and
            the readers of certificates.
    """
    with editing(folder.path):
        has, signer = folder.certificate.exists(), _signer(folder)[0]
        by_signer = has and issued(_server(folder), signer)
        if switch and by_signer and len(_authorities(folder)) > 1:
            _refuse_half_done(folder)
            raise InputError(
                "switched_already",
                "The certificate is by the new authority already. Go on with `multimix-server rotate --forget-old`.",
            )
        if has and not switch and not by_signer:
            raise InputError(
                "authority_changes",
                "The new certificate would be by the new authority, and a site that has not joined again with a new "
                "kit would be cut off. If every site has: multimix-server rotate --switch",
            )
        _renew(folder, now)


def both(folder: FederationFolder, *, now: Clock = utcnow) -> None:
    """Make a new authority that kits carry beside the one that the server's certificate is by, or finish making it.

    Its key is written aside first and takes its place last: until then the old one signs.

    Raises:
        InputError: `rotation_under_way` where the last one is not finished, and as `editing` and the readers of
            certificates.
    """
    with editing(folder.path):
        trusted, (signer, _) = _authorities(folder), _signer(folder)
        if len(trusted) > 1 and (signer == trusted[0] or not issued(_server(folder), signer)):
            raise InputError(
                "rotation_under_way",
                "Two authorities are trusted already. Finish that first: `multimix-server rotate --switch`, "
                "then `multimix-server rotate --forget-old`.",
            )
        aside = folder.path / _NEXT_KEY
        if len(trusted) == 1 or not _key_waits(aside, trusted[0]):
            key = new_key()
            write_atomically(aside, key_pem(key))
            added = authority(folder.settings.name, key, now())
            write_atomically(folder.ca, pem_of(added, signer), mode=0o644)
        aside.replace(folder.ca_key)


def forget_old(folder: FederationFolder, *, look: Look = shown) -> list[Shown]:
    """Trust only the authority that signs from now on; return where nobody answered, so that it is not known.

    Raises:
        InputError: `rotation_half_done`; `old_authority_in_use` where the server's certificate is by the old one, and
            `old_authority_shown` where it is still shown; as `editing` and the readers of certificates.
    """
    with editing(folder.path):
        signer, _ = _signer(folder)
        _refuse_half_done(folder)
        if not issued(_server(folder), signer):
            raise InputError(
                "old_authority_in_use",
                "The server's certificate is still by the old authority. Once every site has joined with a new kit, "
                "run `multimix-server rotate --switch`, and then this.",
            )
        old = [each for each in _authorities(folder) if each != signer]
        if not old:
            return []
        seen = look(folder)
        _refuse_shown(seen, old)
        write_atomically(folder.ca, pem_of(signer), mode=0o644)
    return [each for each in seen if each.certificate is None]


def not_served(folder: FederationFolder, *, look: Look = shown) -> list[Shown]:
    """Return where another certificate than the one on disk is shown; InputError as the readers of certificates."""
    server = _server(folder)
    return [each for each in look(folder) if each.certificate not in {None, server}]


def certificates_of(folder: FederationFolder, now: datetime) -> list[Expiry]:
    """Return every certificate and how long it is good for, the server's first.

    Raises:
        InputError: `certificate_unusable`, `authority_missing`; `certificate_key_mismatch` where a
            rotation was cut short.
    """
    server = _server(folder)
    if not belongs(server, read_key(_read(folder.certificate_key), folder.certificate_key.name)):
        raise InputError(
            "certificate_key_mismatch",
            "server.pem and server.key do not belong together. Run `multimix-server rotate`.",
        )
    shown = [expiry(server, f"server certificate ({folder.certificate.name})", now, needed=True)]
    authorities = _authorities(folder)
    if not any(issued(server, trusted) for trusted in authorities):
        raise InputError("authority_missing", "No authority in ca.pem signed server.pem. Restore both of one time.")
    for trusted in authorities:
        used = issued(server, trusted)
        what = "authority" if used else "authority not in use"
        shown.append(expiry(trusted, f"{what} ({folder.ca.name})", now, needed=used))
    return shown


def expiring(folder: FederationFolder, now: datetime) -> list[Expiry]:
    """Return the certificates in use that have expired, soon will (30 days), or are not valid yet; as above."""
    return [each for each in certificates_of(folder, now) if each.needed and each.state != "good"]


def check_in_force(folder: FederationFolder, now: datetime) -> None:
    """Refuse a certificate in use by which nobody can connect, the server's own commands included.

    Raises:
        InputError: `certificate_expired`, `certificate_not_yet_valid`, and as `certificates_of`.
    """
    for each in expiring(folder, now):
        if each.state == "expired":
            raise InputError(
                "certificate_expired",
                f"The {each.name} expired on {each.expires:%Y-%m-%d}: nobody can connect. {renewal(each)}",
            )
        if each.state == "not_yet_valid":
            raise InputError(
                "certificate_not_yet_valid",
                f"The {each.name} is not valid yet by this machine's clock, which says {now:%Y-%m-%d}. Set the clock; "
                "if it is right, run `multimix-server rotate`.",
            )


def renewal(certificate: Expiry) -> str:
    """Say how a certificate is renewed."""
    if certificate.name.startswith("authority"):
        return (
            "Run `multimix-server rotate --ca`, have every site join again with a new kit, and run "
            "`multimix-server rotate --switch`; then start the server."
        )
    return "Run `multimix-server rotate`, then start the server again."


def _renew(folder: FederationFolder, now: Clock) -> None:
    signer, signer_key = _signer(folder)
    if signer.not_valid_after_utc <= now():
        raise InputError("authority_expired", "The authority has expired. Run `multimix-server rotate --ca` first.")
    key = new_key()
    settings = folder.settings
    certificate = server_certificate(settings.host, key, signer, signer_key, now(), bind_host=settings.bind_host)
    write_atomically(folder.certificate_key, key_pem(key))
    write_atomically(folder.certificate, pem_of(certificate), mode=0o644)


def _key_waits(aside: Path, of: x509.Certificate) -> bool:
    return aside.exists() and belongs(of, read_key(_read(aside), aside.name))


def _refuse_half_done(folder: FederationFolder) -> None:
    if _signer(folder)[0] != _authorities(folder)[0]:
        raise InputError(
            "rotation_half_done",
            "The new authority cannot sign yet: `rotate --ca` was cut short. Run `multimix-server rotate --ca` again, "
            "and go on from there: new kits for every site, then `--switch`.",
        )


def _refuse_shown(seen: list[Shown], old: list[x509.Certificate]) -> None:
    still = [each for each in seen if each.certificate is not None and any(issued(each.certificate, by) for by in old)]
    if still:
        places = "; ".join(f"{each.address}: {each.remedy}" for each in still)
        raise InputError(
            "old_authority_shown",
            "A certificate of the old authority is still shown, and whoever trusts the new one alone would be cut "
            f"off. Between two runs, then this again. {places}",
        )


def _signer(folder: FederationFolder) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    key = read_key(_read(folder.ca_key), folder.ca_key.name)
    for trusted in _authorities(folder):
        if belongs(trusted, key):
            return trusted, key
    raise InputError("authority_missing", "ca.key is the key of no authority in ca.pem. Restore both of one time.")


def _authorities(folder: FederationFolder) -> list[x509.Certificate]:
    return read_certificates(_read(folder.ca), folder.ca.name)


def _server(folder: FederationFolder) -> x509.Certificate:
    return read_certificates(_read(folder.certificate), folder.certificate.name)[0]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        raise InputError("certificate_unusable", f"{file.name} of the federation cannot be read. Restore it.") from None
