"""The federation's certificates, met as a site's TLS meets them, and over time."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from multimix.errors import InputError
from multimix.processes import free_port
from server.provision.certificates import AUTHORITY_LASTS, SERVER_LASTS, SOON, read_certificates
from server.provision.folder import FederationSettings, open_federation
from server.provision.rotation import both, certificates_of, expiring, forget_old, new_federation, not_served, renew
from tests.server.provision.showing import showing

NOW = datetime.now(UTC)


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "federation", "coordinator.example:443")


def make(path, address, now=NOW):
    return new_federation(path, FederationSettings(name="lungs", address=address), now=lambda: now)


@pytest.fixture
def here(tmp_path):
    """A federation with two addresses of this machine, SuperLink's and proxy's, where nobody listens yet."""
    settings = FederationSettings(name="lungs", address=f"127.0.0.1:{free_port()}", bind_port=free_port())
    return new_federation(tmp_path / "here", settings)


def nobody(folder):
    """What a look at a server that does not run shows."""
    return []


def local(folder):
    return f"127.0.0.1:{folder.settings.bind_port}"


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
    forget_old(folder, look=nobody)
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


@pytest.fixture(params=["key aside", "no key aside, as older versions leave it"])
def cut_short(folder, request):
    """`rotate --ca` was killed between ca.pem and ca.key."""
    old_key = folder.ca_key.read_bytes()
    both(folder)
    if request.param == "key aside":
        folder.ca_key.rename(folder.path / "ca.key.new")
    folder.ca_key.write_bytes(old_key)
    return folder


def test_a_new_authority_without_its_key_signs_nothing(cut_short):
    renew(cut_short)
    assert shake_hands(cut_short, cut_short.ca.read_bytes(), "coordinator.example") == "trusted"
    assert refused(renew, cut_short, switch=True) == "rotation_half_done"
    assert refused(forget_old, cut_short, look=nobody) == "rotation_half_done"


def test_a_new_authority_that_was_cut_short_is_finished_by_running_it_again_and_the_old_one_is_forgotten(cut_short):
    trusted_before = read_certificates(cut_short.ca.read_bytes(), "ca.pem")
    both(cut_short)
    renew(cut_short, switch=True)
    forget_old(cut_short, look=nobody)
    (left,) = read_certificates(cut_short.ca.read_bytes(), "ca.pem")
    assert left != trusted_before[1], "the old authority is trusted no longer"
    assert shake_hands(cut_short, cut_short.ca.read_bytes(), "coordinator.example") == "trusted"


def test_an_authority_whose_kits_may_be_out_is_kept_where_its_key_waits_aside(folder):
    old_key = folder.ca_key.read_bytes()
    both(folder)
    bundle = folder.ca.read_bytes()
    folder.ca_key.rename(folder.path / "ca.key.new")
    folder.ca_key.write_bytes(old_key)
    both(folder)
    assert folder.ca.read_bytes() == bundle
    assert not (folder.path / "ca.key.new").exists()


def test_a_key_left_aside_before_its_authority_was_written_is_no_harm(folder):
    (folder.path / "ca.key.new").write_bytes(folder.ca_key.read_bytes())
    both(folder)
    renew(folder, switch=True)
    forget_old(folder, look=nobody)
    assert shake_hands(folder, folder.ca.read_bytes(), "coordinator.example") == "trusted"


def test_switching_twice_is_refused(folder):
    both(folder)
    renew(folder, switch=True)
    assert refused(renew, folder, switch=True) == "switched_already"


def test_two_new_authorities_at_once_are_one(folder):
    said = []

    def make_one():
        try:
            both(folder)
        except InputError as error:
            said.append(error.reason)

    threads = [threading.Thread(target=make_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["rotation_under_way"] * 7
    renew(folder, switch=True)


@pytest.mark.parametrize("where", [local, lambda folder: folder.settings.address], ids=["server", "proxy"])
def test_the_old_authority_is_kept_while_its_certificate_is_still_shown(here, where):
    both(here)
    with showing(here, where(here)):
        renew(here, switch=True)
        before = here.ca.read_bytes()
        with pytest.raises(InputError, match=where(here)) as refusal:
            forget_old(here)
        assert refusal.value.reason == "old_authority_shown"
        assert here.ca.read_bytes() == before
    with showing(here, where(here)):
        forget_old(here)


def test_forgetting_names_the_addresses_where_nobody_answers(here):
    both(here)
    renew(here, switch=True)
    with showing(here, local(here)):
        assert [each.address for each in forget_old(here)] == [here.settings.address]


def test_a_renewed_certificate_is_not_served_before_the_restart(here):
    with showing(here, local(here)), showing(here, here.settings.address):
        assert not_served(here) == []
        renew(here)
        assert [each.address for each in not_served(here)] == [local(here), here.settings.address]
    with showing(here, local(here)):
        assert not_served(here) == []


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
def test_a_damaged_file_is_refused_in_words_of_ours(folder, name):
    (folder.path / name).write_bytes(b"MUELLER")
    with pytest.raises(InputError, match="Restore it") as refusal:
        certificates_of(folder, NOW)
    assert "MUELLER" not in str(refusal.value)


def test_a_proxy_on_another_host_trusts_the_address_that_the_superlink_listens_on(tmp_path):
    settings = FederationSettings(
        name="lungs", address="coordinator.example:443", bind_host="192.0.2.7", expose_superlink=True
    )
    folder = new_federation(tmp_path / "federation", settings)
    assert shake_hands(folder, folder.ca.read_bytes(), "192.0.2.7") == "trusted"
