"""What must not happen quietly: another secret, a lost file of the PACS, a patient left behind, a wrong matrix."""

import json
from dataclasses import replace

import numpy as np
import pytest
from intake_sites import dataset, make_site, pseudonyms_of, store_of, take, write_dicom
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from client.cli import app
from client.intake.cli import purge_patient
from client.intake.examine import Item, Rules, aside, examine, rules_fingerprint
from client.intake.purge import purge_everything
from client.intake.sources import file_key
from client.settings import SiteFolder
from multimix.data import dicom_pixels
from multimix.data.decode import Preprocessing
from multimix.data.phantom_dicom import dicom_bytes
from multimix.errors import SiteError


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path / "site")


def examined(made) -> tuple[str, str]:
    rules = Rules(secret=bytes(32), preprocessing=Preprocessing(32))
    found = examine(Item("key", "dicom", dicom_bytes(made)), rules)
    return found.decision, found.reason


def received(site: SiteFolder, seed: int, **about):
    site.received.mkdir(mode=0o700, exist_ok=True)
    return write_dicom(site.received / f"{seed}.dcm", seed, **about)


def test_another_secret_is_refused_before_anything_is_taken_in(site, tmp_path):
    write_dicom(tmp_path / "in" / "1.dcm", 1)
    take(site, tmp_path / "in")
    site.secret.write_bytes(b"x" * 32)
    with pytest.raises(SiteError) as refused:
        take(site, tmp_path / "in")
    assert refused.value.reason == "secret_changed"


def test_a_lost_secret_is_not_replaced_while_images_are_there(site, tmp_path):
    write_dicom(tmp_path / "in" / "1.dcm", 1)
    take(site, tmp_path / "in")
    site.secret.unlink()
    with pytest.raises(SiteError) as refused:
        take(site, tmp_path / "in")
    assert refused.value.reason == "secret_missing"
    assert not site.secret.exists()


def test_after_a_purge_of_everything_a_site_starts_anew_with_another_secret(site, tmp_path):
    write_dicom(tmp_path / "in" / "1.dcm", 1)
    take(site, tmp_path / "in")
    before = site.secret.read_bytes()
    purge_everything(site)
    assert take(site, tmp_path / "in").holdings.images == 1
    assert site.secret.read_bytes() != before


def test_a_received_file_is_removed_once_it_is_taken_in_or_set_aside_for_good(site):
    received(site, 1)
    received(site, 2, body_part="HAND")
    assert take(site, received=True).outcomes == {"stored": 1, "other_body_part": 1}
    assert list(site.received.iterdir()) == []


def test_a_received_file_that_we_failed_on_stays_and_is_looked_at_again_when_limits_change(site):
    file = received(site, 1)
    limits = site.settings.limits
    rules = f"{rules_fingerprint(site.rules())} {limits.seconds_per_file} {limits.memory_mib}"
    with site.journal(rules=rules) as journal:
        journal.add(file_key(pseudonyms_of(site), file.resolve()), aside("time_limit"))
        journal.commit()
    assert take(site, received=True).unchanged == 1
    assert file.exists()
    patient = site.settings.intake.model_copy(update={"seconds_per_file": 90.0})
    unhurried = SiteFolder(site.path, site.settings.model_copy(update={"intake": patient}))
    assert take(unhurried, received=True).outcomes == {"stored": 1}
    assert not file.exists()


def test_another_set_of_decoders_makes_other_rules(monkeypatch):
    rules = Rules(secret=bytes(32), preprocessing=Preprocessing(32))
    before = rules_fingerprint(rules)
    monkeypatch.setattr("client.intake.examine.decodable", lambda syntax: syntax == dicom_pixels.SYNTAXES[0])
    assert rules_fingerprint(rules) != before
    assert rules_fingerprint(replace(rules, without_preamble=True)) != rules_fingerprint(rules)


def test_a_purge_by_number_takes_every_issuer_and_with_one_only_that(site, tmp_path):
    for seed, issuer in enumerate(("", "HOSP", "CLINIC"), start=1):
        file = tmp_path / "in" / f"{seed}.dcm"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(dicom_bytes(dataset(seed, patient="P1", issuer=issuer)))
    assert take(site, tmp_path / "in").holdings.patients == 3
    assert purge_patient(site, "P1", "HOSP").images_removed == 1
    proof = purge_patient(site, "P1")
    assert (proof.images_removed, proof.holds) == (2, True)
    assert len(store_of(site)) == 0


def test_check_warns_of_a_number_that_several_issuers_gave(site, tmp_path):
    for seed, issuer in enumerate(("", "HOSP"), start=1):
        file = tmp_path / "in" / f"{seed}.dcm"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(dicom_bytes(dataset(seed, patient="P1", issuer=issuer)))
    take(site, tmp_path / "in")
    done = CliRunner().invoke(app, ["check", "--json", "--site", str(site.path)])
    lines = [line for line in json.loads(done.stdout) if line["name"] == "issuers"]
    assert [line["status"] for line in lines] == ["WARN"]


def test_a_rejected_accepted_image_leaves_and_its_corrected_export_is_taken_in(site, tmp_path):
    uid = str(generate_uid())
    write_dicom(tmp_path / "in" / "wrong.dcm", 1, uid=uid)
    write_dicom(tmp_path / "in" / "other.dcm", 2)
    take(site, tmp_path / "in")
    with site.journal() as journal:
        wrong = next(image for image in journal.kept_images() if image.record == 1)  # other.dcm came first
    done = CliRunner().invoke(app, ["review", "reject", f"a{wrong.id}", "--site", str(site.path)])
    assert done.exit_code == 0, done.output
    assert len(store_of(site)) == 1
    assert take(site, tmp_path / "in").unchanged == 2
    write_dicom(tmp_path / "in" / "right.dcm", 3, uid=uid)
    assert take(site, tmp_path / "in").outcomes == {"stored": 1}


def test_what_was_set_aside_beside_a_purged_patient_gets_its_chance(site, tmp_path):
    write_dicom(tmp_path / "in" / "1.dcm", 1, patient="wrong", uid="1.2.3")
    write_dicom(tmp_path / "in" / "2.dcm", 1, patient="right", uid="1.2.4")
    assert take(site, tmp_path / "in").outcomes == {"stored": 1, "duplicate_pixels_other_patient": 1}
    purge_patient(site, "wrong")
    assert take(site, tmp_path / "in").outcomes == {"stored": 1, "patient_purged": 1}


def test_two_rows_with_equal_pixels_crash_no_later_intake(site, tmp_path):
    from PIL import Image

    for name, seed in (("a", 1), ("b", 2)):
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text("image,patient_id,label\na.png,P,normal\nb.png,P,normal\n")
    assert take(site, tmp_path / "m.csv").outcomes == {"stored": 2}
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert take(site, tmp_path / "m.csv").outcomes == {"duplicate_uid_conflict": 1}
    assert take(site, tmp_path / "m.csv").holdings.labelled == 2


def test_rows_and_columns_that_are_not_those_of_the_pixels_are_set_aside():
    for syntax in ("jpeg2000_lossless", "jpegls_lossless"):
        made = dataset(1, transfer_syntax=syntax)
        assert examined(made) == ("accept", "")
        made.Rows, made.Columns = made.Columns, made.Rows
        assert examined(made) == ("aside", "matrix_wrong")


@pytest.mark.parametrize(
    ("spacing", "reason"), [([0.2, 0.2], ""), ([0.2, 0.201], ""), ([0.4, 0.2], "pixels_not_square"), ([0, 0], "")]
)
def test_pixels_that_are_not_square_are_set_aside(spacing, reason):
    made = dataset(1)
    made.PixelSpacing = spacing
    assert examined(made)[1] == reason


def test_labels_that_half_agree_are_told(site, tmp_path):
    write_dicom(tmp_path / "in" / "1.dcm", 1, uid="1.2.3", patient="P1")
    (tmp_path / "l.csv").write_text("sop_instance_uid,patient_id,label\n1.2.3,P2,normal\n")
    holdings = take(site, tmp_path / "in", labels=tmp_path / "l.csv").holdings
    assert holdings.problems == {"labels_disagree": 1}
    assert holdings.labelled == 0


def test_the_secret_is_bound_by_a_pseudonym_and_not_shown(site, tmp_path):
    write_dicom(tmp_path / "in" / "1.dcm", 1)
    take(site, tmp_path / "in")
    with site.journal() as journal:
        assert journal.meta("owner") == pseudonyms_of(site).of("owner of the journal")
