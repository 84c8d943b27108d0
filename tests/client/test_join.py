"""A kit, honest and hostile, and the site that comes of it."""

import argparse
import base64
import hashlib
import io
import json
import os
import stat
import tomllib
import zipfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.join import NODE_KEY, NODE_PUBLIC, check_fingerprint, join, read_kit
from client.settings import FILE, new_site, open_site
from client.site_text import with_keys, with_section
from multimix.contract.kit import AUTHORITY, FILES, KIT, SIGNATURE, SUMS, Kit, signed_sums
from multimix.contract.node_key import as_flower_keeps_it, same_fingerprint
from multimix.contract.signing import public_text
from multimix.errors import SiteError
from multimix.privacy.ledger import read_ledger

COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
CA = b"-----BEGIN CERTIFICATE-----\n"
POPULATION = {"declared_patients": 800, "declared_labels": {"normal": 300}, "epsilon_per_run": 2.0}


def kit_files(key=COORDINATOR, ca=CA, **changes):
    said = Kit(
        federation="lungs",
        site="north",
        address="coordinator.example:443",
        coordinator_key=public_text(COORDINATOR),
        ca_sha256=hashlib.sha256(ca).hexdigest(),
    ).model_dump()
    files = {KIT: json.dumps({**said, **changes}).encode(), AUTHORITY: ca, "site.toml": b"# hints\n"}
    return {**files, **signed_sums(files, key)}


def zipped(files, *, attributes=0, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = attributes << 16
            entry.compress_type = compression
            archive.writestr(entry, data)
    return buffer.getvalue()


@pytest.fixture
def kit(tmp_path):
    """Write a kit and return its file."""

    def write(data):
        file = tmp_path / "north.kit.zip"
        file.write_bytes(data if isinstance(data, bytes) else zipped(data))
        return file

    return write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site"


@pytest.fixture
def honest(kit):
    return read_kit(kit(kit_files()))


def refused(call, *arguments, **options):
    with pytest.raises(SiteError) as refusal:
        call(*arguments, **options)
    return refusal.value.reason


def test_a_site_is_made_that_knows_the_server_the_authority_and_the_coordinator(honest, path):
    joined = join(honest, path)
    server = open_site(path).settings.server
    assert (joined.site.settings.name, server.address) == ("north", "coordinator.example:443")
    assert server.coordinator_key == public_text(COORDINATOR)
    assert server.ca_file.is_absolute()
    assert server.ca_file.read_bytes() == CA


def test_the_connectors_folder_holds_kit_authority_and_key_and_nothing_else(honest, path):
    join(honest, path, population=POPULATION)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (path / "connector").iterdir()}
    assert modes == {AUTHORITY: 0o644, KIT: 0o644, NODE_KEY: 0o600, NODE_PUBLIC: 0o644}
    assert (path / "connector").stat().st_mode & 0o077 == 0


def test_flower_itself_reads_the_pair(honest, path):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    joined = join(honest, path)
    arguments = argparse.Namespace(
        auth_supernode_private_key=str(path / "connector" / NODE_KEY), auth_supernode_public_key=None
    )
    _, public = _try_setup_client_authentication(arguments)
    registered = try_load_public_key(path / "connector" / NODE_PUBLIC)
    assert uses_nist_ec_curve(public)
    assert public_key_to_bytes(public) == registered == as_flower_keeps_it(joined.public_key)


def test_the_line_for_the_coordinator_holds_name_and_key(honest, path):
    joined = join(honest, path)
    public = (path / "connector" / NODE_PUBLIC).read_text().strip()
    assert joined.admit_command == f"multimix-server admit north '{public}'"


def test_joining_again_with_a_newer_kit_updates_the_authority_and_keeps_the_key(honest, path, kit):
    first = join(honest, path)
    newer = read_kit(kit(kit_files(ca=CA + b"another", address="moved.example:8443")))
    again = join(newer, path)
    assert again.public_key == first.public_key
    assert (path / "connector" / AUTHORITY).read_bytes() == CA + b"another"
    assert open_site(path).settings.server.address == "moved.example:8443"


def test_joining_again_writes_to_the_connectors_own_folder_where_site_toml_names_one(honest, path, kit, tmp_path):
    join(honest, path)
    own = tmp_path / "site-connector"
    (path / "connector").rename(own)
    text = (path / FILE).read_text()
    (path / FILE).write_text(with_keys(text, "agent", {"connector_folder": str(own)}))
    key = (own / NODE_KEY).read_bytes()
    join(read_kit(kit(kit_files(ca=CA + b"another"))), path)
    assert (own / AUTHORITY).read_bytes() == CA + b"another"
    assert (own / NODE_KEY).read_bytes() == key
    assert not (path / "connector").exists()


def test_joining_again_leaves_site_toml_to_those_who_read_it(honest, path):
    join(honest, path)
    (path / FILE).chmod(0o640)
    join(honest, path)
    assert stat.S_IMODE((path / FILE).stat().st_mode) == 0o640


def test_the_authority_that_check_reads_is_not_the_connectors_copy(honest, path):
    server = join(honest, path).site.settings.server
    assert server.ca_file == (path / "coordinator-ca.pem").resolve()


def test_a_new_key_is_made_only_if_asked_for(honest, path):
    first = join(honest, path)
    assert join(honest, path, new_key=True).public_key != first.public_key


def test_a_damaged_key_is_not_replaced_in_silence(honest, path):
    join(honest, path)
    (path / "connector" / NODE_KEY).write_bytes(b"MUELLER")
    assert refused(join, honest, path) == "node_key_unusable"


def test_a_declared_population_begins_its_ledger_once(honest, path):
    assert join(honest, path, population=POPULATION).ledger_begun
    site = open_site(path)
    entries = (site.ledger / "ledger.jsonl").read_bytes()
    assert site.population.declared_patients == 800
    assert site.population.declared_labels.normal == 300
    assert read_ledger(site.ledger, site="north", population="patients").head.length == 1
    assert not join(honest, path, population=POPULATION).ledger_begun
    assert (site.ledger / "ledger.jsonl").read_bytes() == entries


def test_a_population_in_other_numbers_is_not_written_over(honest, path):
    join(honest, path, population=POPULATION)
    before = (path / FILE).read_bytes()
    assert refused(join, honest, path, population={**POPULATION, "epsilon_per_run": 5.0}) == "population_exists"
    assert (path / FILE).read_bytes() == before


def test_a_population_that_cannot_be_priced_leaves_a_site_without_key(honest, path):
    assert refused(join, honest, path, population={"declared_patients": 800, "delta": 0.5}) == "settings_invalid"
    assert not (path / "connector").exists()


def test_a_site_that_was_prepared_before_keeps_what_it_has(honest, path):
    made = new_site(path, "north", image_size=64)
    secret = made.secret.read_bytes()
    join(honest, path)
    assert open_site(path).settings.image_size == 64
    assert made.secret.read_bytes() == secret


def test_a_kit_for_another_site_is_refused_and_nothing_changes(honest, path):
    new_site(path, "south", image_size=64)
    before = {file: file.read_bytes() for file in path.iterdir()}
    assert refused(join, honest, path) == "site_name_differs"
    assert {file: file.read_bytes() for file in path.iterdir()} == before


def test_a_kit_of_another_coordinator_is_refused(honest, path, kit):
    join(honest, path)
    other = read_kit(kit(kit_files(OTHER, coordinator_key=public_text(OTHER))))
    assert refused(join, other, path) == "coordinator_differs"


def test_the_fingerprint_is_compared_as_people_say_it(honest):
    check_fingerprint(honest.kit, honest.kit.fingerprint.upper().replace("-", " "))
    assert refused(check_fingerprint, honest.kit, "0" * 32) == "fingerprint_wrong"
    assert refused(check_fingerprint, honest.kit, honest.kit.fingerprint[:-1]) == "fingerprint_wrong"
    assert refused(check_fingerprint, honest.kit, "") == "fingerprint_wrong"
    assert not same_fingerprint("ab", "ba")


def test_a_kit_that_was_unpacked_is_read_too(tmp_path, honest):
    folder = tmp_path / "kit"
    folder.mkdir()
    for name, data in kit_files().items():
        (folder / name).write_bytes(data)
    assert read_kit(folder) == honest


@pytest.mark.parametrize("name", FILES)
def test_a_kit_in_which_any_file_was_altered_is_refused(kit, name):
    files = kit_files()
    files[name] = files[name][:-2] + b"x\n"
    assert refused(read_kit, kit(files)) in {"kit_altered", "kit_signature"}


def test_a_kit_resealed_by_somebody_else_is_refused(kit):
    assert refused(read_kit, kit(kit_files(OTHER))) == "kit_signature"


def test_a_signature_of_the_coordinator_over_something_else_is_none_of_a_kit(kit):
    files = kit_files()
    files[SIGNATURE] = base64.b64encode(COORDINATOR.sign(files[SUMS]))
    assert refused(read_kit, kit(files)) == "kit_signature"


def test_another_authority_than_the_one_named_is_refused(kit):
    assert refused(read_kit, kit(kit_files(ca_sha256="0" * 64))) == "kit_altered"


def test_a_kit_of_another_protocol_is_refused_even_if_it_says_more(kit):
    assert refused(read_kit, kit(kit_files(protocol=2, more="x"))) == "kit_protocol"


@pytest.mark.parametrize(
    "changes",
    [{"address": 'a:1"\n[policy]'}, {"address": "a"}, {"site": "../x"}, {"more": 1}, {"coordinator_key": "AA=="}],
)
def test_a_kit_that_says_what_a_kit_cannot_is_refused(kit, changes):
    assert refused(read_kit, kit(kit_files(**changes))) == "kit_malformed"


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "connector/node.key", "notes.txt"])
def test_a_path_of_its_own_in_the_archive_is_refused(kit, name):
    assert refused(read_kit, kit({**kit_files(), name: b"x"})) == "kit_name"


def test_a_link_in_the_archive_is_refused(kit):
    assert refused(read_kit, kit(zipped(kit_files(), attributes=stat.S_IFLNK | 0o777))) == "kit_link"


def test_a_link_in_the_folder_is_refused(tmp_path):
    for name, data in kit_files().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / AUTHORITY).unlink()
    (tmp_path / AUTHORITY).symlink_to("/etc/hostname")
    assert refused(read_kit, tmp_path) == "kit_link"


def test_a_pipe_in_the_folder_does_not_hang(tmp_path):
    for name, data in kit_files().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / AUTHORITY).unlink()
    os.mkfifo(tmp_path / AUTHORITY)
    assert refused(read_kit, tmp_path) == "kit_link"


def test_a_file_that_unpacks_to_more_than_a_kit_holds_is_refused(kit):
    files = {**kit_files(), AUTHORITY: bytes(64 << 20)}
    assert refused(read_kit, kit(zipped(files, compression=zipfile.ZIP_DEFLATED))) == "kit_too_large"


def test_a_file_that_lies_about_its_size_is_refused(kit):
    data = zipped({**kit_files(), AUTHORITY: bytes(64 << 20)}, compression=zipfile.ZIP_DEFLATED)
    lied = data.replace((64 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert refused(read_kit, kit(lied)) == "kit_unreadable"


def test_an_archive_larger_than_any_kit_is_refused(kit):
    assert refused(read_kit, kit(zipped({KIT: bytes(2 << 20)}))) == "kit_too_large"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_comes_twice_is_refused(kit):
    buffer = io.BytesIO(zipped(kit_files()))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(AUTHORITY, b"another")
    assert refused(read_kit, kit(buffer.getvalue())) == "kit_incomplete"


@pytest.mark.parametrize("data", [b"", b"PK", b"MUELLER" * 100])
def test_what_is_no_archive_is_refused(kit, data):
    assert refused(read_kit, kit(data)) == "kit_unreadable"


def test_a_kit_without_one_of_its_files_is_refused(kit, tmp_path):
    files = kit_files()
    del files[SIGNATURE]
    assert refused(read_kit, kit(files)) == "kit_incomplete"
    assert refused(read_kit, tmp_path) == "kit_incomplete"


def test_no_kit_is_said_so(tmp_path):
    assert refused(read_kit, tmp_path / "none") == "kit_missing"


def test_a_section_written_by_hand_is_replaced_and_the_rest_stays_word_for_word():
    text = '# mine\nname = "a"\n[server]  # old\naddress = "a:1"\n\n[policy]  # ours\nminimum_cohort = 20\n'
    changed = with_section(text, "server", {"address": "b:2"})
    assert changed == '# mine\nname = "a"\n[server]\naddress = "b:2"\n\n[policy]  # ours\nminimum_cohort = 20\n'


def test_a_file_in_which_a_section_cannot_be_told_is_left_to_a_person():
    assert refused(with_section, 'name = "a"\nserver = { address = "a:1" }\n', "server", {"address": "b:2"}) == (
        "settings_unusual"
    )
    spread = 'name = "a"\n[server]\naddress = "a:1"\n\nca_file = "/x"\n'
    assert refused(with_section, spread, "server", {"address": "b:2"}) == "settings_unusual"


def test_a_site_without_the_templates_comments_gets_the_section_at_its_end():
    assert tomllib.loads(with_section('name = "a"\n', "server", {"address": "b:2"})) == {
        "name": "a",
        "server": {"address": "b:2"},
    }
