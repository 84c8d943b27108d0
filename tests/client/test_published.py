"""What the agent writes down for intake, where intake may not read the ledger."""

import json
import shutil

import pytest
from intake_sites import found_image, make_site, store_of
from test_intake_generation import grow

from client.intake.generation import KEPT, generations
from client.intake.pinned import fingerprints_in_use
from client.population import PopulationSettings
from client.published import FILE, publish_in_use
from client.settings import AgentSettings
from multimix.privacy.ledger import create_ledger, open_ledger
from multimix.privacy.reservations import Reservations
from tests.privacy import sample_ledger as sample


@pytest.fixture
def site(tmp_path):
    agent = AgentSettings(folder=tmp_path / "site-agent")
    made = make_site(tmp_path / "site", population=PopulationSettings(declared_patients=100), agent=agent)
    create_ledger(made.ledger, site="clinic", population="patients")
    grow(made, found_image(made, "1", grey=1))
    return made


def trained_on(site, fingerprint):
    kept, bound = Reservations(site.ledger), sample.binding(fingerprint=fingerprint)
    with open_ledger(site.ledger, site="clinic", population="patients") as ledger:
        made = kept.reserve(ledger, lambda hashed: sample.reservation(binding=bound, commitment=hashed))[0]
        kept.keep_order(ledger, bound, b"order")
        kept.keep_reply(ledger, made.sequence, b"reply")


def out_of_sight(site):
    """Put the ledger where nobody finds it, as it is for intake's user; root reads everything."""
    shutil.move(site.ledger, site.path.parent / "closed")
    site.ledger.mkdir()
    (site.ledger / "ledger.jsonl").mkdir()


def grow_beyond_what_is_kept(site):
    for n in range(2, 3 + KEPT):
        grow(site, found_image(site, f"{n}", grey=n))


def test_intake_keeps_what_the_agent_named_and_removes_the_rest(site):
    first = store_of(site).fingerprint
    trained_on(site, first)
    publish_in_use(site)
    out_of_sight(site)
    grow_beyond_what_is_kept(site)
    assert generations(site.store) == [1, *range(3, 3 + KEPT)]


def test_the_generation_that_the_next_round_trains_on_is_named_before_it_ends(site):
    publish_in_use(site)
    assert fingerprints_in_use(site) == {store_of(site).fingerprint}


def test_nothing_but_fingerprints_leaves_the_agents_folder_and_for_its_group_alone(site):
    publish_in_use(site)
    file = site.agent / FILE
    assert json.loads(file.read_bytes()) == {"fingerprints": [store_of(site).fingerprint]}
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("text", [None, "nonsense", '{"fingerprints": 3}'])
def test_where_the_agent_has_told_nothing_every_generation_stays(site, text):
    if text is not None:
        (site.agent / FILE).write_text(text)
    out_of_sight(site)
    assert fingerprints_in_use(site) is None
    grow_beyond_what_is_kept(site)
    assert generations(site.store)[0] == 1


def test_a_ledger_that_the_agent_cannot_read_takes_nothing_back(site):
    trained_on(site, "f" * 64)
    publish_in_use(site)
    before = (site.agent / FILE).read_bytes()
    out_of_sight(site)
    publish_in_use(site)
    assert (site.agent / FILE).read_bytes() == before


def test_a_folder_that_cannot_be_written_does_not_stop_the_agent(site, caplog):
    (site.agent / FILE).mkdir()
    publish_in_use(site)
    assert "in_use_not_written" in caplog.text
    assert str(site.path) not in caplog.text


def test_one_user_who_reads_the_ledger_needs_no_such_file(tmp_path):
    made = make_site(tmp_path / "site", population=PopulationSettings(declared_patients=100))
    create_ledger(made.ledger, site="clinic", population="patients")
    publish_in_use(made)
    assert not (made.path / FILE).exists()
