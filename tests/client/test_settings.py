"""site.toml: read whole, refused with a key and a reason, and never quoted."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from client.policy import SitePolicy
from client.population import PopulationSettings
from client.settings import FILE, IntakeSettings, SiteSettings, new_site, open_site
from multimix.contract.messages import ClassCounts
from multimix.data.decode import Preprocessing
from multimix.errors import SiteError

SECRET_WORD = "hunter2-MUELLER"


@pytest.fixture
def site(tmp_path):
    return new_site(tmp_path / "site", "clinic-a", image_size=64)


def refusal(path):
    with pytest.raises(SiteError) as refused:
        open_site(path)
    return refused.value


def test_a_new_site_is_what_it_was_made_as_and_closed_to_others(site):
    again = open_site(site.path)
    assert again == site
    assert (again.settings.name, again.settings.preprocessing) == ("clinic-a", Preprocessing(64))
    assert site.path.stat().st_mode & 0o077 == 0
    assert {file.stat().st_mode & 0o777 for file in site.path.iterdir()} == {0o600}
    assert len(site.secret.read_bytes()) == 32


def test_every_line_of_a_new_file_that_is_a_comment_can_be_used(site):
    lines = (site.path / FILE).read_text().splitlines()
    used = [line[2:] if line.startswith(("# [", "# ")) and ("=" in line or "[" in line) else line for line in lines[1:]]
    by_hand = ("store_group", "coordinator_key", "officer_key")  # such a group is not everywhere; a key is its owner's
    (site.path / FILE).write_text("\n".join(line for line in used if not line.startswith(by_hand)))
    settings = open_site(site.path).settings
    assert settings.label_map == {"No Finding": "normal"}
    assert settings.pacs is not None
    assert settings.receiver is not None
    assert settings.server is not None
    assert settings.policy == SitePolicy(approve_jobs=True)  # else what the file shows are the defaults
    assert settings.population == PopulationSettings(
        declared_patients=1000,
        declared_labels=ClassCounts(normal=400, pneumonia=400),
        declared_masks={"mediastinum_excluded": 200},
        delta=0.0005,
        ledger=Path("/srv/multimix/ledger"),
    )


@pytest.mark.parametrize("key", ["coordinator_key", "officer_key"])
def test_a_key_that_nobody_filled_in_is_refused(site, key):
    text = (site.path / FILE).read_text()
    section = "server" if key == "coordinator_key" else "population"
    example = next(line for line in text.splitlines() if line.startswith(f"# {key}"))
    needed = 'address = "a:1"' if section == "server" else "declared_patients = 9"
    (site.path / FILE).write_text(f'name = "a"\n[{section}]\n{needed}\n{example[2:]}\n')
    assert f"{section}.{key}" in str(refusal(site.path))


def test_a_second_site_in_the_same_place_is_refused_and_the_first_one_stays(site):
    before = {file: file.read_bytes() for file in site.path.iterdir()}
    with pytest.raises(SiteError) as refused:
        new_site(site.path, "other", image_size=64)
    assert refused.value.reason == "site_exists"
    assert {file: file.read_bytes() for file in site.path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "size", "key"), [('a"b', 64, "name"), ("a\nb", 64, "name"), ("", 64, "name"), ("a", 100, "image_size")]
)
def test_a_site_that_could_not_be_opened_is_not_made(tmp_path, name, size, key):
    with pytest.raises(SiteError, match=f"^{key}: ") as refused:
        new_site(tmp_path / "site", name, image_size=size)
    assert refused.value.reason == "settings_invalid"
    assert not (tmp_path / "site").exists()


MISTAKES = {
    "image_size": f'name = "a"\nimage_size = "{SECRET_WORD}"',
    "fit": f'name = "a"\nfit = "{SECRET_WORD}"',
    "store_group": f'name = "a"\nstore_group = "{SECRET_WORD}:x"',
    "label_map.x": f'name = "a"\n[label_map]\nx = "{SECRET_WORD}"',
    "intake.memory_mib": 'name = "a"\n[intake]\nmemory_mib = 100',
    "intake.pasword": f'name = "a"\n[intake]\npasword = "{SECRET_WORD}"',
    "pacs.url": f'name = "a"\n[pacs]\nurl = "https://user:{SECRET_WORD}@pacs.example/"',
    "receiver": 'name = "a"\n[receiver]\nport = 104',
    "policy.minimum_cohort": 'name = "a"\n[policy]\nminimum_cohort = -5',
    "policy.maximum_clip_norm": 'name = "a"\n[policy]\nmaximum_clip_norm = 0',
    "policy.release_evaluation": f'name = "a"\n[policy]\nrelease_evaluation = "{SECRET_WORD}"',
    "population.declared_patients": 'name = "a"\n[population]\ndeclared_patients = 1',
    "population.epsilon_lifetime": 'name = "a"\n[population]\ndeclared_patients = 9\nepsilon_lifetime = nan',
    "server.coordinator_key": 'name = "a"\n[server]\naddress = "a:1"\ncoordinator_key = "AAAA"',
    "name": f"image_size = 64\n# {SECRET_WORD}",
}
SENSELESS = {
    "declared_patients = 9\ndeclared_labels = { normal = 10 }": "more patients",
    "declared_patients = 9\ndeclared_masks = { a = 10 }": "more patients",
    "declared_patients = 10\ndelta = 0.1": "below 1 / declared_patients",
    "declared_patients = 10\ndelta = 1e-11": "below 1 / declared_patients",
    'declared_patients = 10\nofficer_key = "AAAA"': "Ed25519",
}


@pytest.mark.parametrize("text", SENSELESS)
def test_a_population_that_makes_no_sense_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(f'name = "a"\n[population]\n{text}')
    refused = refusal(tmp_path)
    assert str(refused).startswith("site.toml, population: ")
    assert SENSELESS[text] in str(refused)


@pytest.mark.parametrize(
    ("line", "expected"), [("", "ledger"), ('ledger = "../kept"', "../kept"), ('ledger = "/srv/kept"', "/srv/kept")]
)
def test_the_ledger_lies_in_the_sites_folder_unless_another_is_named(tmp_path, line, expected):
    (tmp_path / FILE).write_text(f'name = "a"\n[population]\ndeclared_patients = 9\n{line}')
    assert open_site(tmp_path).ledger == tmp_path / expected


PARTS = {
    "connector_folder": ("connector", "connector"),
    "socket": ("socket", "socket/agent.sock"),
    "metrics_folder": ("metrics", ""),
    "folder": ("agent", ""),
}


@pytest.mark.parametrize("key", PARTS)
def test_a_part_lies_in_the_sites_folder_unless_another_place_is_named(tmp_path, key):
    part, usual = PARTS[key]
    for line, expected in (
        ("", tmp_path / usual),
        (f'{key} = "../x"', tmp_path / "../x"),
        (f'{key} = "/x"', Path("/x")),
    ):
        (tmp_path / FILE).write_text(f'name = "a"\n[agent]\n{line}\n')
        assert getattr(open_site(tmp_path), part) == expected


def test_metrics_lie_with_the_agents_log_unless_monitoring_has_a_folder(tmp_path):
    (tmp_path / FILE).write_text('name = "a"\n[agent]\nfolder = "/srv/a"\n')
    assert open_site(tmp_path).metrics == Path("/srv/a")


def test_a_site_opens_where_the_stores_group_is_unknown_and_intake_says_so_at_once(tmp_path):
    """As in a container, or before `systemd-sysusers` has made it."""
    site = new_site(tmp_path / "site", "clinic-a", image_size=64)
    text = (site.path / FILE).read_text()
    (site.path / FILE).write_text(text.replace("[label_map]", 'store_group = "no-such-group"\n[label_map]'))
    with pytest.raises(SiteError) as refused:
        open_site(site.path).journal()
    assert refused.value.reason == "group_unknown"


def test_a_site_that_declares_no_population_has_none(site):
    with pytest.raises(SiteError) as refused:
        _ = site.population
    assert refused.value.reason == "population_missing"


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_is_refused_with_its_key_and_without_its_value(tmp_path, key):
    (tmp_path / FILE).write_text(MISTAKES[key])
    refused = refusal(tmp_path)
    assert refused.reason == "settings_invalid"
    assert f"site.toml, {key}" in str(refused)
    assert SECRET_WORD not in str(refused)
    assert str(tmp_path) not in str(refused)
    assert refused.__cause__ is None
    assert refused.__suppress_context__


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "site_missing"), (b"\xff\xfe", "site_missing"), (b'name = "hunter2', "settings_invalid")],
)
def test_a_file_that_is_no_settings_file_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    refused = refusal(tmp_path)
    assert refused.reason == reason
    assert "hunter2" not in str(refused)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_can_read_is_not_used(site, mode):
    site.secret.chmod(mode)
    with pytest.raises(SiteError) as refused:
        site.rules()
    assert refused.value.reason == "secret_not_private"


def test_the_secret_stays_and_is_not_shown(site):
    rules = site.rules()
    assert site.rules() == rules
    assert rules.secret == site.secret.read_bytes()
    assert repr(rules.secret) not in repr(rules)


def test_workers_are_as_many_as_processors_unless_said():
    assert SiteSettings(name="a").limits.workers == os.cpu_count()
    assert SiteSettings(name="a", intake=IntakeSettings(workers=3)).limits.workers == 3


def test_settings_cannot_be_changed_after_they_are_read(site):
    with pytest.raises(ValidationError):
        site.settings.image_size = 128
