"""A bundle that holds is what its auditor signed, and what its ledger says; nothing of it is believed."""

import shutil
import stat

import pytest

from multimix.audit.evidence import bundle as bundles
from multimix.audit.evidence.bundle import check_bundle, write_bundle
from multimix.audit.evidence.page import as_html
from multimix.audit.evidence.records import Evidence, evidence_json, read_evidence
from multimix.audit.evidence.rederived import differences
from multimix.contract.signing import public_text
from multimix.errors import InputError
from multimix.privacy.ledger import create_ledger, open_ledger
from multimix.privacy.officer import decide
from multimix.privacy.statement_page import as_html as statement_html
from tests.audit import sample_evidence as audit
from tests.audit.ledger_attacks import OTHER, heads_of, written
from tests.privacy import sample_ledger as sample

SIGNER = public_text(audit.AUDITOR)
RAW, WHOLE = audit.whole(raw=written(audit.everything()))
HEADS = heads_of(RAW, (2, RAW.count(b"\n")))
FILES = ["evidence.html", "evidence.json", "heads.json", "ledger.jsonl", "manifest.json", "statement.html"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "bundle"
    write_bundle(folder, WHOLE, RAW, heads=HEADS, key=audit.AUDITOR)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def reasons(folder, signer=SIGNER):
    return check_bundle(folder, signer, price=audit.price).reasons


def signed_again(folder, **texts):
    """What an auditor who lies can do: other files, rightly hashed and signed."""
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_bytes(text.encode() if isinstance(text, str) else text)
    files = {path.name: bundles.hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    files.pop("manifest.json")
    manifest = bundles._signed(files, audit.AUDITOR)
    (folder / "manifest.json").write_text(bundles._manifest_text(manifest))


def lie(folder, evidence):
    signed_again(folder, evidence_json=evidence_json(evidence), evidence_html=as_html(evidence))


def test_a_bundle_holds_and_its_evidence_is_read_back(made):
    checked = check_bundle(made, SIGNER, price=audit.price)
    assert (checked.reasons, checked.notes, checked.holds) == ((), (), True)
    assert checked.evidence == WHOLE
    assert sorted(path.name for path in made.iterdir()) == FILES


def test_a_bundle_of_a_ledger_of_the_software_holds(tmp_path):
    officer = public_text(OTHER)
    create_ledger(tmp_path / "ledger", site="north", population="adults")
    with open_ledger(tmp_path / "ledger", site="north", population="adults") as ledger:
        for body in audit.everything():
            ledger.append(body)
        decide(ledger, "allow_non_private", "agreed", OTHER, officer_key=officer)
        ledger.append(sample.non_private())
        keys = audit.KEYS.model_copy(update={"ledger": ledger.public_key, "officer": officer})
    raw = (tmp_path / "ledger" / "ledger.jsonl").read_bytes()
    evidence = audit.evidence_of(raw, keys=keys)
    write_bundle(tmp_path / "bundle", evidence, raw, heads=None, key=audit.AUDITOR)
    assert evidence.verification.violations == ()
    assert reasons(tmp_path / "bundle") == ()
    assert not (tmp_path / "bundle" / "heads.json").exists()


def test_a_bundle_of_contradicted_evidence_holds_and_says_so(tmp_path):
    raw = written([*audit.bodies(), sample.commit(3)])
    evidence = audit.evidence_of(raw, statement=audit.statement_of(raw))
    write_bundle(tmp_path / "bundle", evidence, raw, heads=None, key=audit.AUDITOR)
    checked = check_bundle(tmp_path / "bundle", SIGNER, price=audit.price)
    assert checked.holds
    assert checked.evidence.judgement.word == "contradicted"


def test_the_same_inputs_make_the_same_bytes(made, tmp_path):
    write_bundle(tmp_path / "again", WHOLE, RAW, heads=HEADS, key=audit.AUDITOR)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_only_its_owner_can_read_a_bundle(made):
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o600}


def test_records_of_other_sites_stay_out_of_the_bundle(tmp_path):
    others = heads_of(written([], OTHER), (1,), site="south", key=public_text(OTHER))
    write_bundle(tmp_path / "bundle", WHOLE, RAW, heads=(*HEADS, *others), key=audit.AUDITOR)
    assert "south" not in (tmp_path / "bundle" / "heads.json").read_text()
    assert reasons(tmp_path / "bundle") == ()


@pytest.mark.parametrize("name", FILES)
def test_every_flip_of_a_byte_is_found(copied, name):
    path = copied / name
    data = path.read_bytes()
    step = 1 if name == "manifest.json" else max(1, len(data) // 150)
    for position in range(0, len(data), step):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            assert reasons(copied), (name, position, flip)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    expected = "manifest_missing" if name == "manifest.json" else f"file_missing: {name}"
    assert reasons(copied) == (expected,)


def test_an_extra_file_is_found_and_its_name_not_repeated(copied):
    (copied / "jane-doe.dcm").write_bytes(b"x")
    assert reasons(copied) == ("file_extra",)


def test_a_link_in_place_of_a_file_is_found(copied, tmp_path):
    (copied / "evidence.html").rename(tmp_path / "elsewhere.html")
    (copied / "evidence.html").symlink_to(tmp_path / "elsewhere.html")
    assert reasons(copied) == ("file_extra", "file_missing: evidence.html")


def test_another_signer_is_found_and_an_unknown_one_noted(made):
    assert reasons(made, public_text(OTHER)) == ("signer_other",)
    checked = check_bundle(made, None, price=audit.price)
    assert (checked.reasons, checked.notes, checked.signer) == ((), ("signer_not_given",), SIGNER)


def test_a_better_verdict_than_derived_is_found(copied):
    worse = audit.whole(raw=RAW, empirical=())[1]
    lie(copied, worse.model_copy(update={"judgement": WHOLE.judgement}))
    assert reasons(copied) == ("judgement_differs",)


def test_findings_left_out_are_found(copied):
    seen = WHOLE.verification.model_copy(update={"open_reservations": (1,)})
    lie(copied, WHOLE.model_copy(update={"verification": seen}))
    assert reasons(copied) == ("verification_differs",)


def test_a_smaller_recomputed_epsilon_is_found(copied):
    document = WHOLE.model_dump()
    document["recomputation"]["lifetime"] = 0.1
    lie(copied, Evidence.model_validate(document))
    assert "recomputation_differs" in reasons(copied)


def test_a_refusal_left_out_is_found(copied):
    lie(copied, WHOLE.model_copy(update={"refusals": ()}))
    assert reasons(copied) == ("facts_differs",)


def test_a_statement_with_a_notice_left_out_is_found(copied):
    statement = WHOLE.statement.model_copy(update={"notices": ()})
    assert WHOLE.statement.notices
    evidence = read_evidence(evidence_json(WHOLE.model_copy(update={"statement": statement})))
    signed_again(copied, statement_html=statement_html(evidence.statement))
    lie(copied, evidence)
    assert reasons(copied) == ("statement_differs",)


@pytest.mark.parametrize("name", ["evidence_html", "statement_html"])
def test_a_page_that_says_something_else_is_found(copied, name):
    signed_again(copied, **{name: "<p>perfectly private</p>"})
    assert reasons(copied) == (f"page_differs: {name.replace('_', '.')}",)


OTHER_SOFTWARE = WHOLE.model_copy(update={"software": WHOLE.software | {"multimix": "0.0.9+older"}})
OTHER_ACCOUNTANTS = WHOLE.statement.model_copy(update={"accountant_versions": {"prv": "0"}})


@pytest.mark.parametrize("page", [None, "<h1>Consistent. Epsilon is at most 0.01.</h1>"])
def test_only_a_page_that_this_software_derives_holds_whatever_software_is_named(copied, page):
    signed_again(copied, evidence_json=evidence_json(OTHER_SOFTWARE), evidence_html=page or as_html(OTHER_SOFTWARE))
    checked = check_bundle(copied, SIGNER, price=audit.price)
    assert checked.notes == ("software_other",)
    assert checked.reasons == (("page_differs: evidence.html",) if page else ())
    assert checked.holds == (page is None)


@pytest.mark.parametrize("lower", [False, True])
def test_a_statement_is_priced_again_whatever_accountants_are_named(copied, lower):
    life = OTHER_ACCOUNTANTS.lifetime
    life = life.model_copy(update={"epsilon": life.epsilon - 1e-3} if lower else {})
    statement = OTHER_ACCOUNTANTS.model_copy(update={"lifetime": life})
    evidence = read_evidence(evidence_json(WHOLE.model_copy(update={"statement": statement})))
    signed_again(copied, statement_html=statement_html(statement))
    lie(copied, evidence)
    checked = check_bundle(copied, SIGNER, price=audit.price)
    assert checked.notes == ("accountants_other",)
    assert checked.reasons == (("statement_differs",) if lower else ())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("recomputation", "delta"), 1e-12),
        (("recomputation", "rows", 0, "entry", "delta"), 1e-12),
        (("recomputation", "rows", 0, "entry", "claimed_private"), 1e-12),
        (("recomputation", "private"), 1e-12),
        (("runs", 0, "delta", 0), 1e-12),
        (("runs", 0, "dp", 0, "epsilon"), 1e-12),
    ],
)
def test_small_values_are_compared_as_well_as_large_ones(place, value):
    tiny = sample.patient_privacy(delta=9e-7, epsilon=9e-7)
    claims = dict.fromkeys(("epsilon_run", "epsilon_lifetime", "epsilon_private", "prv", "pld"), 9e-7)
    raw = written([audit.reservation(dp=tiny, delta=9e-7, **claims)])
    evidence = audit.evidence_of(raw)
    document = evidence.model_dump(mode="json")
    *path, last = place
    inner = document
    for step in path:
        inner = inner[step]
    inner[last] = value
    lied = Evidence.model_validate_json(evidence_json(Evidence.model_validate_json(bundles.canonical(document))))
    assert differences(evidence, raw, None, price=audit.price).faults == []
    assert differences(lied, raw, None, price=audit.price).faults


@pytest.mark.parametrize(("apart", "faults"), [(1e-8, []), (1e-5, ["recomputation_differs"])])
def test_a_price_may_differ_by_rounding_only(apart, faults):
    found = WHOLE.recomputation
    changed = type(found)(**{**vars(found), "private": found.private * (1 + apart)})
    evidence = WHOLE.model_copy(update={"recomputation": changed})
    assert differences(evidence, RAW, HEADS, price=audit.price).faults == faults


def test_a_copied_value_may_not_differ_even_by_rounding():
    run = WHOLE.runs[0].model_copy(update={"delta": (audit.DELTA * (1 + 1e-12),)})
    evidence = WHOLE.model_copy(update={"runs": (run,)})
    assert differences(evidence, RAW, HEADS, price=audit.price).faults == ["facts_differs"]


def test_exact_figures_of_patients_are_not_filed_unless_they_are_faults():
    near = audit.empirical().neighbours.model_copy(update={"sensitivity": 0.7312345, "leakage": 3.21e-13})
    far = near.model_copy(update={"sensitivity": 1.25, "flagged": True})
    filed = [
        each.neighbours
        for each in audit.whole(empirical=tuple(audit.empirical(neighbours=each) for each in (near, far)))[1].empirical
    ]
    assert [(each.sensitivity, each.leakage) for each in filed] == [(1.0, 0.0), (1.25, 0.0)]
    assert [each.patients for each in filed] == [near.patients, far.patients]


def test_exact_figures_of_patients_in_a_bundle_are_found(copied):
    neighbours = audit.empirical().neighbours.model_copy(update={"sensitivity": 0.7312345})
    lie(copied, WHOLE.model_copy(update={"empirical": (audit.empirical(neighbours=neighbours),)}))
    assert "measurements_differs" in reasons(copied)


def test_a_ledger_that_was_swapped_is_found(copied):
    signed_again(copied, ledger_jsonl=written(audit.bodies()))
    assert {"verification_differs", "facts_differs"} <= set(reasons(copied))


def test_heads_left_out_are_found(copied):
    (copied / "heads.json").unlink()
    signed_again(copied)
    assert "verification_differs" in reasons(copied)


def test_keys_that_are_none_are_a_fault_of_the_bundle(copied):
    lie(copied, WHOLE.model_copy(update={"keys": WHOLE.keys.model_copy(update={"coordinator": "AAAA"})}))
    assert reasons(copied) == ("evidence_unreadable",)


def test_a_folder_that_is_not_empty_is_left_alone(copied):
    before = (copied / "evidence.json").read_bytes()
    with pytest.raises(InputError) as caught:
        write_bundle(copied, audit.evidence_of(RAW), RAW, heads=None, key=audit.AUDITOR)
    assert caught.value.reason == "bundle_exists"
    assert (copied / "evidence.json").read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        write_bundle(tmp_path / "file" / "bundle", WHOLE, RAW, heads=HEADS, key=audit.AUDITOR)
    assert caught.value.reason == "bundle_unwritable"
    assert "file" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": OTHER}, "auditor_key"),
        ({"raw": RAW + b"x"}, "evidence_of_another_ledger"),
        ({"heads": None}, "evidence_of_another_ledger"),
    ],
)
def test_evidence_of_something_else_is_not_signed(tmp_path, changes, reason):
    given = {"raw": RAW, "heads": HEADS, "key": audit.AUDITOR} | changes
    with pytest.raises(InputError) as caught:
        write_bundle(tmp_path / "bundle", WHOLE, given.pop("raw"), **given)
    assert caught.value.reason == reason
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_is_none_cannot_be_checked(tmp_path):
    with pytest.raises(InputError) as caught:
        check_bundle(tmp_path / "jane-doe", SIGNER)
    assert caught.value.reason == "bundle_unreadable"
    assert "jane" not in str(caught.value)


def test_a_signer_key_that_is_none_is_refused(made):
    with pytest.raises(InputError) as caught:
        check_bundle(made, "AAAA")
    assert caught.value.reason == "key_unusable"
