"""A site that one user made becomes one that three users share: moved whole, said in site.toml, or refused."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from client.layout import layout_of, settle, unsaid
from client.ownership import rewrite
from client.population import PopulationSettings
from client.settings import FILE, new_site, open_site
from client.site_text import with_keys
from multimix.errors import SiteError
from multimix.privacy.ledger import create_ledger, read_ledger


@pytest.fixture
def site(tmp_path):
    made = new_site(tmp_path / "site", "clinic", image_size=64)
    with (made.path / FILE).open("a") as text:
        text.write("\n[population]\ndeclared_patients = 20\n")
    made = open_site(made.path)
    create_ledger(made.ledger, site="clinic", population="patients")
    made.connector.mkdir()
    (made.connector / "node.key").write_bytes(b"key")
    (made.agent / "control.json").write_text("{}")
    return made


def layout(site, **options):
    return layout_of(site, **{"user": "multimix", "agent": None, "connector": None, **options})


def refused(call, *arguments, **options):
    with pytest.raises(SiteError) as refusal:
        call(*arguments, **options)
    return refusal.value.reason


def said(path, *lines):
    (path / FILE).write_text((path / FILE).read_text().replace("[label_map]", "\n".join((*lines, "[label_map]")), 1))
    return open_site(path)


def test_ledger_decisions_and_key_lie_in_their_own_folders_and_site_toml_says_so(site, tmp_path):
    head = read_ledger(site.ledger).head
    settle(site, layout(site))
    now = open_site(site.path)
    assert now.agent == tmp_path / "site-agent"
    assert (now.ledger, read_ledger(now.ledger).head) == (tmp_path / "site-agent" / "ledger", head)
    assert (now.agent / "control.json").exists()
    assert (now.connector / "node.key").read_bytes() == b"key"
    assert (now.settings.store_group, now.settings.agent.connector_group) == ("multimix-agent", "multimix-connector")
    assert now.socket == Path("/run/multimix/agent.sock")
    assert sorted(each.name for each in site.path.iterdir()) == ["site.secret", "site.toml"]


def test_done_twice_it_changes_nothing(site):
    settle(site, layout(site))
    now = open_site(site.path)
    text = (site.path / FILE).read_bytes()
    assert unsaid(now, layout(now)) == {}
    settle(now, layout(now))
    assert (site.path / FILE).read_bytes() == text


def test_broken_off_after_a_move_it_goes_on(site):
    (site.path.with_name("site-agent")).mkdir()
    site.ledger.rename(site.path.with_name("site-agent") / "ledger")
    settle(site, layout(site))
    assert read_ledger(open_site(site.path).ledger).head.length == 1


def test_what_a_person_said_of_the_agent_stays(site):
    site = said(site.path, "[agent]", "threads = 3  # ours", 'socket = "/run/ours/s"')
    settle(site, layout(site))
    assert open_site(site.path).settings.agent.threads == 3
    assert open_site(site.path).socket == Path("/run/ours/s")
    assert "threads = 3  # ours" in (site.path / FILE).read_text()


def test_two_ledgers_are_not_made_into_one(site):
    create_ledger(site.path.with_name("site-agent") / "ledger", site="clinic", population="patients")
    before = (site.path / FILE).read_bytes()
    assert refused(settle, site, layout(site)) == "folder_taken"
    assert (site.path / FILE).read_bytes() == before
    assert site.ledger.exists()
    assert (site.agent / "control.json").exists()


@pytest.mark.parametrize("lock", ["agent.lock", "connector/connect.lock"])
def test_nothing_moves_while_agent_or_connector_runs(site, lock):
    with (site.path / lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert refused(settle, site, layout(site)) == "still_running"
    assert site.ledger.exists()


def test_a_ledger_that_lies_elsewhere_stays_and_may_be_written(site, tmp_path):
    kept = tmp_path / "kept"
    site = type(site)(site.path, site.settings.model_copy(
        update={"population": PopulationSettings(declared_patients=20, ledger=kept)}))  # fmt: skip
    assert layout(site).ledger == kept
    assert kept in layout(site).writable


@pytest.mark.parametrize("where", ["agent", "connector"])
@pytest.mark.parametrize("inside", ["site/here", "."])
def test_a_folder_in_the_sites_or_around_it_is_refused(site, tmp_path, where, inside):
    assert refused(layout, site, **{where: tmp_path / inside}) == "folder_inside"


def test_a_connector_in_the_agents_folder_is_refused(site, tmp_path):
    assert refused(layout, site, connector=tmp_path / "site-agent" / "connector") == "folder_inside"


@pytest.mark.parametrize("place", ["/home/anna/agent", "/root/agent", "/run/user/1000/agent"])
def test_a_folder_that_the_services_cannot_see_is_refused(site, place):
    assert refused(layout, site, agent=Path(place)) == "folder_hidden"


def test_a_relative_folder_counts_from_the_site(site, tmp_path):
    site = said(site.path, "[agent]", 'folder = "../books"')
    assert layout(site).agent == tmp_path / "books"


def test_one_key_changes_and_the_lines_around_it_do_not():
    text = 'name = "a"\n# store_group = "x"  # why\n\n[agent]  # ours\nthreads = 2\n# folder = "/a"\n[policy]\n'
    changed = with_keys(with_keys(text, "", {"store_group": "g"}), "agent", {"folder": "/b", "threads": 4})
    assert changed == 'name = "a"\nstore_group = "g"\n\n[agent]  # ours\nthreads = 4\nfolder = "/b"\n[policy]\n'


def test_a_key_that_was_not_there_is_put_in():
    assert with_keys('name = "a"\n[agent]\n', "agent", {"folder": "/b"}) == 'name = "a"\n[agent]\nfolder = "/b"\n'


def test_a_file_where_a_line_cannot_be_changed_alone_is_left_to_a_person():
    text = 'name = "a"\n[agent]\nfolder = """\n/a"""\n'
    assert refused(with_keys, text, "agent", {"folder": "/b"}) == "settings_unusual"


@pytest.mark.skipif(bool(os.geteuid()), reason="only root can give a file away")
def test_a_file_that_is_rewritten_keeps_owner_group_and_mode(tmp_path):
    file = tmp_path / "site.toml"
    file.write_text("old")
    os.chown(file, 2, 1)
    file.chmod(0o640)
    rewrite(file, b"new")
    found = file.stat()
    assert (file.read_text(), found.st_uid, found.st_gid, found.st_mode & 0o777) == ("new", 2, 1, 0o640)


@pytest.mark.skipif(bool(os.geteuid()), reason="only root can be somebody else")
def test_root_writes_in_a_folder_as_its_owner_and_follows_no_link_of_theirs():
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to other users
        Path(name).chmod(0o711)
        folder, secret = Path(name) / "connector", Path(name) / "secret"
        folder.mkdir()
        os.chown(folder, 5, 60)
        secret.write_text("root's")
        (folder / "site.toml").symlink_to(secret)
        assert refused(rewrite, folder / "site.toml", b"theirs") == "not_the_owner"
        rewrite(folder / "new", b"theirs")
        assert (secret.read_text(), (folder / "new").stat().st_uid) == ("root's", 5)
    assert os.geteuid() == 0
