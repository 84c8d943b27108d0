"""Who takes part, and that no key ever changes its name."""

import os
import tempfile
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from multimix.contract.node_key import as_flower_keeps_it, new_node_key, public_half
from multimix.errors import InputError
from server.nodes import Node
from server.provision.admission import admit, revoke, shut_out
from server.provision.folder import (
    FILE,
    AdmittedSite,
    FederationFolder,
    FederationSettings,
    open_federation,
    write_settings,
)

AT = datetime(2026, 11, 20, 8, tzinfo=UTC)
LATER = datetime(2026, 11, 21, 8, tzinfo=UTC)


def key():
    return public_half(new_node_key())


@pytest.fixture
def path(tmp_path):
    settings = FederationSettings(name="lungs", address="coordinator.example:443")
    return write_settings(FederationFolder(tmp_path, settings), settings).path


def refused(call, *arguments):
    with pytest.raises(InputError) as refusal:
        call(*arguments)
    return refusal.value.reason


def test_an_admitted_site_is_on_record_with_key_and_time(path):
    mine = key()
    admit(path, "north", f"{mine} root@north", now=lambda: AT)
    assert open_federation(path).settings.sites == {"north": AdmittedSite(public_key=mine, admitted=AT)}


def test_a_site_is_known_by_the_pem_that_flower_keeps(path):
    mine = key()
    folder = admit(path, "north", mine)
    assert folder.settings.admitted["north"].flower_key == as_flower_keeps_it(mine)


def test_admitting_again_changes_nothing(path):
    mine = key()
    admit(path, "north", mine, now=lambda: AT)
    before = (path / FILE).read_bytes()
    admit(path, "north", mine, now=lambda: LATER)
    assert (path / FILE).read_bytes() == before


def test_a_key_has_one_name(path):
    mine = key()
    admit(path, "north", mine)
    assert refused(admit, path, "south", mine) == "key_of_another_site"


def test_a_site_that_takes_part_gets_no_second_key(path):
    admit(path, "north", key())
    assert refused(admit, path, "north", key()) == "site_admitted"


def test_a_revoked_site_is_on_record_with_the_time(path):
    admit(path, "north", key(), now=lambda: AT)
    folder = revoke(path, "north", now=lambda: LATER)
    assert open_federation(path).settings.sites["north"].revoked == LATER
    assert folder.settings.admitted == {}


def test_revoking_again_keeps_the_first_time(path):
    admit(path, "north", key())
    revoke(path, "north", now=lambda: AT)
    assert revoke(path, "north", now=lambda: LATER).settings.sites["north"].revoked == AT


@pytest.mark.parametrize("name", ["north", "south"])
def test_a_revoked_key_is_never_admitted_again_under_any_name(path, name):
    mine = key()
    admit(path, "north", mine)
    revoke(path, "north")
    assert refused(admit, path, name, mine) == "key_revoked"


def test_a_revoked_site_comes_back_with_another_key_and_the_old_one_stays_refused(path):
    old, new = key(), key()
    admit(path, "north", old)
    revoke(path, "north")
    settings = admit(path, "north", new).settings
    assert settings.admitted["north"].public_key == new
    assert settings.revoked_keys == {old}
    assert open_federation(path).settings == settings
    assert refused(admit, path, "south", old) == "key_revoked"


def test_revoking_an_unknown_site_is_refused(path):
    assert refused(revoke, path, "north") == "site_unknown"


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a\nb", "-a", "a" * 65])
def test_a_name_that_could_be_a_path_or_an_option_is_refused(path, name):
    assert refused(admit, path, name, key()) == "site_name"


def test_a_private_key_given_by_mistake_is_said_so(path, tmp_path):
    (tmp_path / "node.key").write_bytes(new_node_key())
    assert refused(admit, path, "north", str(tmp_path / "node.key")) == "key_private"


@pytest.mark.parametrize("text", ["/nowhere", "ecdsa-sha2-nistp384 AAAA", "\0", ""])
def test_what_is_no_key_is_refused(path, text):
    assert refused(admit, path, "north", text) == "key_unusable"


def test_two_commands_at_once_lose_nothing(path):
    keys = {f"site-{number}": key() for number in range(8)}
    threads = [threading.Thread(target=admit, args=(path, *item)) for item in keys.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: site.public_key for name, site in open_federation(path).settings.sites.items()} == keys


def test_a_federation_that_names_a_key_twice_is_refused(path):
    mine = key()
    admit(path, "north", mine)
    text = (path / FILE).read_text().replace("north", "south").split("\n\n")[1]
    (path / FILE).write_text((path / FILE).read_text() + "\n" + text)
    assert refused(open_federation, path) == "federation_invalid"


@pytest.mark.parametrize("text", ["name =", "name = 'a'", "name = 'a'\naddress = 'http://a'", "unknown = 1"])
def test_a_damaged_federation_is_refused(path, text):
    (path / FILE).write_text(text)
    assert refused(open_federation, path) == "federation_invalid"


def test_no_federation_is_said_so(tmp_path):
    assert refused(open_federation, tmp_path / "none") == "federation_missing"


def node(site, *, registered):
    return Node(number=1, key=site.flower_key, registered=registered, online=True, seen=None)


def test_a_revocation_is_in_force_once_the_superlink_lets_the_key_go(path):
    admit(path, "north", key())
    folder = revoke(path, "north")
    site = folder.settings.sites["north"]
    answers = iter([[node(site, registered=True)], [node(site, registered=False)]])
    assert shut_out(folder, "north", lambda: next(answers))


def test_a_revocation_that_the_superlink_does_not_take_over_is_not_in_force(path):
    admit(path, "north", key())
    folder = revoke(path, "north")
    listed = [node(folder.settings.sites["north"], registered=True)]
    assert not shut_out(folder, "north", lambda: listed, within_s=0.3)


def test_a_key_that_the_superlink_never_saw_is_shut_out(path):
    admit(path, "north", key())
    assert shut_out(revoke(path, "north"), "north", list)


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
SERVICE, OTHER = 64_001, 64_002  # users that need no name


@pytest.fixture
def of_service():
    """A federation in a folder of the service's user."""
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        folder = Path(base) / "federation"
        settings = FederationSettings(name="lungs", address="coordinator.example:443")
        write_settings(FederationFolder(folder, settings), settings)
        for each in (folder, folder / FILE):
            os.chown(each, SERVICE, SERVICE)
        folder.chmod(0o700)
        yield folder


@contextmanager
def as_user(number):
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)


@ROOT
def test_what_root_changes_stays_readable_for_the_service(of_service):
    admit(of_service, "north", key())
    revoke(of_service, "north")
    with as_user(SERVICE):
        assert open_federation(of_service).settings.admitted == {}


@ROOT
def test_the_service_changes_its_own_federation(of_service):
    with as_user(SERVICE):
        admit(of_service, "north", key())
        assert (of_service / FILE).stat().st_uid == SERVICE


@ROOT
def test_another_user_is_told_whose_it_is(of_service):
    with as_user(OTHER):
        assert refused(revoke, of_service, "north") == "wrong_user"


@ROOT
def test_another_user_who_may_write_is_refused_all_the_same(of_service):
    of_service.chmod(0o777)
    (of_service / FILE).chmod(0o666)
    with as_user(OTHER):
        assert refused(admit, of_service, "north", key()) == "wrong_user"
