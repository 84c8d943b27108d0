"""The federation's certificates, met as a site's TLS meets them, and over time."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.errors import InputError
from server.provision.certificates import AUTHORITY_LASTS, SERVER_LASTS, SOON
from server.provision.folder import FederationSettings, open_federation
from server.provision.rotation import both, certificates_of, expiring, forget_old, new_federation, renew

NOW = datetime.now(UTC)


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "federation", "coordinator.example:443")


def make(path, address, now=NOW):
    return new_federation(path, FederationSettings(name="lungs", address=address), now=lambda: now)


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as refusal:
        call(*arguments, **options)
    return refusal.value.reason


def shake_hands(folder, trusted, host):
    """Connect over TLS to a server with the folder's certificate; what the client says of it."""
    here, there = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.certificate, folder.certificate_key)

    def serve():
        try:
            context.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cadata=trusted.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    try:
        with client.wrap_socket(here, server_hostname=host):
            return "trusted"
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("host", ["coordinator.example", "localhost", "127.0.0.1"])
def test_the_server_is_trusted_under_its_name_and_on_its_own_machine(folder, host):
    assert shake_hands(folder, folder.ca.read_bytes(), host) == "trusted"


@pytest.mark.parametrize(("address", "host"), [("192.0.2.7:9000", "192.0.2.7"), ("[2001:db8::1]:443", "2001:db8::1")])
def test_an_address_in_numbers_is_in_the_certificate(tmp_path, address, host):
    made = make(tmp_path / "f", address)
    assert shake_hands(made, made.ca.read_bytes(), host) == "trusted"


def test_another_host_is_not_trusted(folder):
    assert "mismatch" in shake_hands(folder, folder.ca.read_bytes(), "other.example")


def test_another_authority_is_not_trusted(folder, tmp_path):
    other = make(tmp_path / "other", "coordinator.example:443")
    assert "unable to get local issuer" in shake_hands(folder, other.ca.read_bytes(), "coordinator.example")


def test_an_expired_certificate_is_not_trusted(tmp_path):
    made = make(tmp_path / "f", "coordinator.example:443", NOW - SERVER_LASTS - timedelta(days=1))
    assert "expired" in shake_hands(made, made.ca.read_bytes(), "coordinator.example")


def test_keys_are_closed_to_other_users(folder):
    assert folder.path.stat().st_mode & 0o777 == 0o700
    for file in (folder.ca_key, folder.certificate_key, folder.coordinator):
        assert file.stat().st_mode & 0o777 == 0o600


def test_the_folder_is_read_back_with_a_key_that_signs(folder):
    again = open_federation(folder.path)
    assert again == folder
    assert isinstance(again.signing_key(), Ed25519PrivateKey)


def test_a_coordinators_key_that_others_may_read_is_refused(folder):
    folder.coordinator.chmod(0o640)
    assert refused(folder.signing_key) == "coordinator_key_not_private"


@pytest.mark.parametrize("content", [b"", b"no key", None])
def test_a_damaged_coordinators_key_is_refused(folder, content):
    folder.coordinator.write_bytes(content or folder.ca_key.read_bytes())
    assert refused(folder.signing_key) == "coordinator_key_unusable"


def test_a_second_federation_in_the_same_place_is_refused_and_the_first_stays(folder):
    before = {file: file.read_bytes() for file in folder.path.iterdir() if file.is_file()}
    assert refused(make, folder.path, "other.example:443") == "federation_exists"
    assert {file: file.read_bytes() for file in before} == before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    assert refused(make, tmp_path, "other.example:443") == "federation_exists"
    assert tmp_path.stat().st_mode & 0o777 != 0  # and not even its mode was changed
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("at", "state"),
    [
        (NOW, []),
        (NOW + SERVER_LASTS - SOON - timedelta(hours=1), []),
        (NOW + SERVER_LASTS - SOON + timedelta(hours=1), ["soon"]),
        (NOW + SERVER_LASTS, ["expired"]),
        (NOW - timedelta(days=2), ["not_yet_valid", "not_yet_valid"]),
        (NOW + AUTHORITY_LASTS, ["expired", "expired"]),
    ],
)
def test_a_warning_comes_thirty_days_before_the_end(folder, at, state):
    assert [each.state for each in expiring(folder, at)] == state


def test_renewing_changes_key_and_certificate_and_sites_do_not_notice(folder):
    before = folder.certificate.read_bytes(), folder.certificate_key.read_bytes()
    renew(folder)
    assert not {folder.certificate.read_bytes(), folder.certificate_key.read_bytes()} & set(before)
    assert shake_hands(folder, folder.ca.read_bytes(), "coordinator.example") == "trusted"


def test_an_authority_is_replaced_and_a_site_that_follows_is_never_cut_off(folder):
    host = "coordinator.example"
    old = folder.ca.read_bytes()
    both(folder)
    bundle = folder.ca.read_bytes()
    assert old in bundle
    assert [shake_hands(folder, trusted, host) for trusted in (old, bundle)] == ["trusted"] * 2
    renew(folder, switch=True)
    assert shake_hands(folder, bundle, host) == "trusted"
    assert shake_hands(folder, old, host) != "trusted"
    forget_old(folder)
    new = folder.ca.read_bytes()
    assert old not in new
    assert [shake_hands(folder, trusted, host) for trusted in (bundle, new)] == ["trusted"] * 2


def test_the_yearly_renewal_does_not_cut_sites_off_while_an_authority_is_replaced(folder):
    both(folder)
    before = folder.certificate.read_bytes()
    assert refused(renew, folder) == "authority_changes"
    assert folder.certificate.read_bytes() == before


def test_the_old_authority_is_kept_while_the_server_needs_it(folder):
    both(folder)
    assert refused(forget_old, folder) == "old_authority_in_use"


def test_a_third_authority_waits_for_the_second(folder):
    both(folder)
    assert refused(both, folder) == "rotation_under_way"


def test_an_old_authority_that_expires_is_no_warning_once_the_server_left_it(folder):
    both(folder, now=lambda: NOW + timedelta(days=3000))
    renew(folder, switch=True, now=lambda: NOW + timedelta(days=3500))
    at = NOW + timedelta(days=3700)
    assert {each.name: each.state for each in certificates_of(folder, at)}["authority not in use (ca.pem)"] == "expired"
    assert expiring(folder, at) == []


def test_an_expired_authority_signs_nothing(folder):
    assert refused(renew, folder, now=lambda: NOW + AUTHORITY_LASTS) == "authority_expired"


def test_a_rotation_that_a_crash_cut_short_is_said_so_and_mended_by_running_it_again(folder, tmp_path):
    key = make(tmp_path / "other", "coordinator.example:443").certificate_key.read_bytes()
    folder.certificate_key.write_bytes(key)  # written, and the certificate not yet
    assert refused(certificates_of, folder, NOW) == "certificate_key_mismatch"
    renew(folder)
    assert expiring(folder, NOW) == []


def test_a_new_authority_without_its_key_signs_nothing_and_is_dropped_again(folder):
    old_key, old = folder.ca_key.read_bytes(), folder.ca.read_bytes()
    both(folder)
    folder.ca_key.write_bytes(old_key)  # as if a crash had come between ca.pem and ca.key
    renew(folder)
    assert shake_hands(folder, old, "coordinator.example") == "trusted"
    forget_old(folder)
    assert folder.ca.read_bytes() == old


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
def test_a_damaged_file_is_refused_in_words_of_ours(folder, name):
    (folder.path / name).write_bytes(b"MUELLER")
    with pytest.raises(InputError, match="Restore it") as refusal:
        certificates_of(folder, NOW)
    assert "MUELLER" not in str(refusal.value)
