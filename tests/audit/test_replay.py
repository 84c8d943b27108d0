"""A round is reproduced by the true trainer only; whatever else a site keeps, or does not, is told by its reason."""

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.audit.replay import replay, replay_simulated, replay_site
from client.audit.sites import AuditedSite, real_site, recorded_run, simulated_site
from client.books import Books, Order
from client.envelopes import pack, pack_order
from client.hospital import local_site
from client.intake.cli import purge_patient
from client.intake.generation import KEPT, write_generation
from client.simulated import simulated_site as training_site
from client.site import private_data, private_report
from multimix.audit.replay import NOT_REPLAYABLE, compare, replayable, verdict_of
from multimix.contract.messages import weights_sha256
from multimix.contract.run_config import RunConfig
from multimix.contract.signing import public_text, sign, simulation_key
from multimix.contract.site import Trained
from multimix.errors import InputError, Refused, RunConfigError, SiteError
from multimix.network import MultiMixNetwork
from multimix.privacy.entries import Binding, NonPrivate, Reservation
from multimix.privacy.ledger import FILE, create_ledger, open_ledger, read_ledger
from multimix.privacy.officer import decide
from multimix.privacy.reservations import ORDERS, REPLIES, SECRETS, Reservations
from multimix.privacy.training import train_privately
from multimix.version import code_version
from multimix.weights import load_into
from server.results import write_results
from tests.client.intake_sites import add_all, found_image, journal_of, make_site
from tests.client.tiny_hospitals import (
    DP,
    KEY,
    POPULATION,
    PRIVATE,
    PRIVATE_WEIGHTS,
    SIZE,
    dealt,
    private_order,
    private_plan,
    private_site,
    write_radiographs,
)
from tests.server.sample_results import sample_results

OFFICER = simulation_key(7)
NAMED = POPULATION.model_copy(update={"officer_key": public_text(OFFICER)})
ROUND = 1  # sequence of the first reservation; entry 0 is the genesis


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_radiographs(tmp_path_factory.mktemp("radiographs"))


@pytest.fixture(scope="module")
def hospital(data, tmp_path_factory):
    return dealt(data, tmp_path_factory.mktemp("cache"))["both"]


def audited(hospital, folder: Path, coordinator=KEY.public_key()) -> AuditedSite:
    def pinned(fingerprint):
        if hospital.store().fingerprint != fingerprint:
            raise Refused("generation_gone")
        return hospital, hospital.store()

    return AuditedSite(hospital.name, folder, NAMED, coordinator, pinned, lambda: (hospital, hospital.store()))


def replayed(hospital, folder: Path, **how):
    how = {"coordinator": KEY.public_key(), **how}
    site = audited(hospital, folder, how.pop("coordinator"))
    return replay(site, site.read_ledger().entries, ROUND, device="cpu", **how)


@pytest.fixture(scope="module")
def answered(hospital, tmp_path_factory):
    """The ledger's folder of a site that answered one round by the book; never changed."""
    folder = tmp_path_factory.mktemp("answered") / "ledger"
    private_site(hospital, folder).train(private_order(), PRIVATE_WEIGHTS)
    return folder


@pytest.fixture
def ledger(answered, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(answered, tmp_path / "ledger"))


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def _honest_report(hospital, plan, signed, sent):
    return private_report(hospital.name, plan, signed, sent)


def lie(
    hospital, folder: Path, *, trainer=train_privately, report=_honest_report, priced=None, spoil=None, **plan_fields
):
    """Answer one round as a site whose software does what is given; `priced` is what its ledger says was ordered."""
    plan = private_plan(**plan_fields)
    signed, store = sign(plan, KEY), hospital.store()
    create_ledger(folder, site=hospital.name, population=POPULATION.name)
    bound = Binding(
        job_id=plan.job_id,
        round=plan.round,
        plan_sha256=signed.sha256,
        weights_sha256=plan.weights_sha256,
        data_fingerprint=store.fingerprint,
    )

    def train(secret: bytes) -> bytes:
        network = load_into(MultiMixNetwork(plan.method.network), PRIVATE_WEIGHTS)
        sent = trainer(network, private_data(hospital, store, plan), plan.method, plan.work, plan.dp, secret=secret)
        reply = pack(Trained(report(hospital, plan, signed, sent), sent))
        return spoil(reply) if spoil else reply

    books = Books(folder, hospital.name, POPULATION, seed="0")  # the same draws in every run of the tests
    order = Order(priced(plan) if priced else plan, bound, pack_order(signed, PRIVATE_WEIGHTS))
    with open_ledger(folder, site=hospital.name, population=POPULATION.name) as opened:
        books.answer(opened, order, train)


# --- an honest round


def test_an_honest_round_is_reproduced_bit_for_bit(hospital, answered):
    found = replayed(hospital, answered, tolerance=0.0)
    assert (found.verdict, found.reasons, found.difference, found.largest) == ("reproduced", (), 0.0, None)
    assert (found.sequence, found.job_id, found.round) == (ROUND, "job", 1)
    assert found.code_then == found.code_now == code_version()


def test_nothing_of_the_site_is_changed(hospital, ledger):
    def everything():
        return {path: path.read_bytes() for path in sorted(ledger.rglob("*")) if path.is_file()}

    before = everything()
    replayed(hospital, ledger)
    assert everything() == before


def test_progress_counts_the_steps_of_the_round(hospital, answered):
    seen = []
    replayed(hospital, answered, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]


def test_without_the_coordinator_s_key_the_round_is_replayed_all_the_same(hospital, answered):
    assert replayed(hospital, answered, coordinator=None).verdict == "reproduced"


def test_committed_reservations_can_be_replayed_and_no_other_entry(hospital, answered):
    entries = read_ledger(answered).entries
    assert replayable(entries) == (ROUND,)
    assert replayable(entries[:-1]) == ()
    for other in (0, 2, 3, -1):
        with pytest.raises(SiteError) as caught:
            replay(audited(hospital, answered), entries, other)
        assert caught.value.reason == "reservation_unknown"


@pytest.mark.parametrize("tolerance", [-1e-9, 0.11, float("nan"), float("inf")])
def test_a_tolerance_that_says_nothing_is_refused(hospital, answered, tolerance):
    with pytest.raises(InputError, match="tolerance"):
        replayed(hospital, answered, tolerance=tolerance)


# --- what is missing


@pytest.mark.parametrize(
    ("folder", "reason"), [(ORDERS, "order_missing"), (SECRETS, "secret_missing"), (REPLIES, "reply_purged")]
)
def test_a_round_with_a_part_purged_by_the_officer_is_not_replayable(hospital, ledger, folder, reason):
    officer_purges(ledger)
    only_file(ledger / folder).unlink()
    found = replayed(hospital, ledger)
    assert (found.verdict, found.reasons, found.difference) == ("not_replayable", (reason,), None)


@pytest.mark.parametrize("folder", [ORDERS, SECRETS, REPLIES])
def test_a_part_that_is_gone_without_a_decision_is_told(hospital, ledger, folder):
    only_file(ledger / folder).unlink()
    found = replayed(hospital, ledger)
    assert found.verdict == "differs"
    assert "removed_without_decision" in found.reasons


def test_a_purge_that_another_than_the_officer_signed_excuses_nothing(hospital, ledger):
    officer_purges(ledger, simulation_key(8))
    only_file(ledger / SECRETS).unlink()
    assert "removed_without_decision" in replayed(hospital, ledger).reasons


def officer_purges(folder, key=OFFICER) -> None:
    """Enter the decision; what it removes is up to the test."""
    with open_ledger(folder, site="both", population=POPULATION.name) as opened:
        decide(opened, "secrets_purged", "all", key, officer_key=public_text(key))


def test_every_missing_part_is_named(hospital, ledger):
    officer_purges(ledger)
    for folder in (ORDERS, SECRETS, REPLIES):
        shutil.rmtree(ledger / folder)

    def gone(_fingerprint):
        raise Refused("generation_gone")

    site = replace(audited(hospital, ledger), pinned=gone)
    found = replay(site, site.read_ledger().entries, ROUND)
    assert found.reasons == ("order_missing", "secret_missing", "generation_gone", "reply_purged")
    assert found.verdict == "not_replayable"


def test_an_uncommitted_round_is_not_replayable(hospital, ledger):
    entries = read_ledger(ledger).entries[:-1]
    found = replay(audited(hospital, ledger), entries, ROUND)
    assert (found.verdict, found.reasons) == ("not_replayable", ("not_committed",))


def test_a_round_without_privacy_is_not_replayable(hospital, answered):
    entries = read_ledger(answered).entries
    reserved = entries[ROUND].body
    open_round = NonPrivate(binding=reserved.binding, steps=2)
    found = replay(audited(hospital, answered), (entries[0], entries[1].model_copy(update={"body": open_round})), ROUND)
    assert (found.verdict, found.reasons, found.code_then) == ("not_replayable", ("non_private",), "")


def test_an_error_while_training_again_is_named_by_a_code_and_its_words_stay_here(hospital, answered, caplog):
    def fails(*_, **__):
        raise RuntimeError("patient secret-3 in /data/both3.png")

    found = replayed(hospital, answered, train=fails)
    assert (found.verdict, found.reasons) == ("not_replayable", ("replay_failed",))
    assert "secret-3" not in caplog.text + repr(found)


def test_a_trainer_that_computes_nothing_reproduces_nothing(hospital, answered):
    assert replayed(hospital, answered, train=lambda *_, **__: None).reasons == ("replay_failed",)


def test_a_refusal_while_training_again_is_a_difference_since_the_site_answered(hospital, answered):
    def refuses(*_, **__):
        raise Refused("network_mixes_patients")

    found = replayed(hospital, answered, train=refuses)
    assert (found.verdict, found.reasons) == ("differs", ("network_mixes_patients",))


# --- what was changed


@pytest.mark.parametrize(
    ("folder", "reason"), [(ORDERS, "order_damaged"), (SECRETS, "secret_damaged"), (REPLIES, "reply_damaged")]
)
@pytest.mark.parametrize("content", [b"", b"{}\n", b"nonsense", b'{"document":1,"signature":2}\n\x08' + bytes(7)])
def test_a_part_that_is_not_what_was_kept_is_a_difference(hospital, ledger, folder, reason, content):
    only_file(ledger / folder).write_bytes(content)
    found = replayed(hospital, ledger)
    assert (found.verdict, found.reasons) == ("differs", (reason,))


def test_another_order_in_its_place_is_a_difference(hospital, ledger):
    other = pack_order(private_order(seed=6), PRIVATE_WEIGHTS)
    only_file(ledger / ORDERS).write_bytes(other)
    assert replayed(hospital, ledger).reasons == ("order_changed",)


def test_other_weights_in_their_place_are_a_difference(hospital, ledger):
    weights = {name: value + 1 for name, value in PRIVATE_WEIGHTS.items()}
    only_file(ledger / ORDERS).write_bytes(pack_order(private_order(), weights))
    assert replayed(hospital, ledger).reasons == ("order_changed",)


def test_an_order_that_another_key_signed_is_a_difference_though_the_weights_are_reproduced(hospital, ledger):
    found = replayed(hospital, ledger, coordinator=simulation_key(1).public_key())
    assert (found.verdict, found.reasons, found.difference) == ("differs", ("plan_signature",), 0.0)


def test_a_signature_that_is_no_text_is_a_difference(hospital, ledger):
    path = only_file(ledger / ORDERS)
    first, _, arrays = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(first) | {"signature": 7}).encode() + b"\n" + arrays)
    assert replayed(hospital, ledger).reasons == ("plan_signature",)


@pytest.mark.parametrize(
    "priced",
    [
        lambda plan: plan.model_copy(update={"dp": plan.dp.model_copy(update={"sampling_rate": 0.25})}),
        lambda plan: plan.model_copy(update={"work": plan.work.model_copy(update={"steps": 1})}),
    ],
    ids=["rate", "steps"],
)
def test_a_ledger_that_enters_less_than_was_ordered_is_a_difference(hospital, tmp_path, priced):
    lie(hospital, tmp_path, priced=priced)
    found = replayed(hospital, tmp_path)
    assert (found.verdict, found.reasons, found.difference) == ("differs", ("ledger_entry_differs",), 0.0)


@pytest.mark.parametrize("field", ["job_id", "round", "method_sha256", "dp", "steps"])
def test_every_figure_of_the_entry_is_held_against_the_order(hospital, answered, field):
    entries = read_ledger(answered).entries
    body = entries[ROUND].body
    bound = body.binding
    changed = {
        "job_id": {"binding": bound.model_copy(update={"job_id": "other"})},
        "round": {"binding": bound.model_copy(update={"round": 2})},
        "method_sha256": {"method_sha256": "0" * 64},
        "dp": {"dp": body.dp.model_copy(update={"noise_multiplier": 3.0})},
        "steps": {"steps": 1},
    }[field]
    entry = entries[ROUND].model_copy(update={"body": body.model_copy(update=changed)})
    found = replay(audited(hospital, answered), (entries[0], entry, *entries[2:]), ROUND, device="cpu")
    assert "ledger_entry_differs" in found.reasons
    assert (found.verdict, found.difference) == ("differs", 0.0)


# --- trainers that lie


def with_dp(**changes):
    """A trainer that obeys other privacy than was ordered."""

    def train(network, data, method, work, dp, *, secret):
        return train_privately(network, data, method, work, dp.model_copy(update=changes), secret=secret)

    return train


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": DP.noise_multiplier / 2},
        {"noise_multiplier": 0.0},
        {"sampling_rate": 0.9},
        {"clip_norm": 1e3, "noise_multiplier": DP.noise_multiplier / 1e3},
    ],
    ids=["half noise", "no noise", "rate", "no clipping"],
)
def test_a_trainer_that_lies_is_found_out(hospital, tmp_path, changes):
    lie(hospital, tmp_path, trainer=with_dp(**changes))
    found = replayed(hospital, tmp_path)
    assert (found.verdict, found.reasons) == ("differs", ("weights_differ",))
    assert found.difference > found.tolerance
    assert found.largest in PRIVATE_WEIGHTS


def moved_by(relative: float):
    """A trainer whose release is moved off by a part of the update's norm."""

    def train(*args, **how):
        sent = train_privately(*args, **how)
        random = np.random.default_rng(0)
        off = {name: random.standard_normal(value.shape) for name, value in sent.items()}
        update = np.sqrt(sum(np.sum((sent[name] - PRIVATE_WEIGHTS[name]) ** 2.0) for name in sent))
        scale = relative * update / np.sqrt(sum(np.sum(value**2) for value in off.values()))
        return {name: (value + scale * off[name]).astype(np.float32) for name, value in sent.items()}

    return train


@pytest.mark.parametrize(("relative", "verdict"), [(5e-5, "reproduced"), (1e-3, "differs")])
def test_the_tolerance_is_a_part_of_the_update_s_norm(hospital, tmp_path, relative, verdict):
    lie(hospital, tmp_path, trainer=moved_by(relative))
    found = replayed(hospital, tmp_path)
    assert found.verdict == verdict
    assert found.difference == pytest.approx(relative, rel=0.02)  # float32 rounds the weights


def test_another_set_of_arrays_is_a_difference(hospital, tmp_path):
    def less(*args, **how):
        sent = train_privately(*args, **how)
        return dict(list(sent.items())[1:])

    lie(hospital, tmp_path, trainer=less)
    assert replayed(hospital, tmp_path).reasons == ("arrays_differ",)


def test_weights_that_are_not_finite_are_a_difference(hospital, tmp_path):
    def diverged(*args, **how):
        return {name: value * np.float32("nan") for name, value in train_privately(*args, **how).items()}

    lie(hospital, tmp_path, trainer=diverged)
    assert replayed(hospital, tmp_path).reasons == ("weights_not_finite",)


# --- replies that say more


def report_with(**more):
    return lambda *about: _honest_report(*about).model_copy(update=more)


@pytest.mark.parametrize(
    "more",
    [
        {"losses": {"total": 0.25}},
        {"seconds": {"step": 1.5}},
        {"pseudo_label_rate": 0.5},
        {"steps": 3},
        {"weights_sha256": "0" * 64},
        {"site": "secret-3"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_reply_that_tells_more_than_noised_weights_is_a_difference(hospital, tmp_path, more):
    lie(hospital, tmp_path, report=report_with(**more))
    found = replayed(hospital, tmp_path)
    assert (found.verdict, found.reasons) == ("differs", ("released_beyond_the_ledger",))
    assert found.difference == 0.0
    assert "secret-3" not in repr(found)


def test_metrics_are_seen_even_where_the_order_is_gone(hospital, tmp_path):
    lie(hospital, tmp_path, report=report_with(losses={"total": 0.25}))
    only_file(tmp_path / ORDERS).unlink()
    found = replayed(hospital, tmp_path)
    assert (found.verdict, found.reasons) == (
        "differs",
        ("order_missing", "released_beyond_the_ledger", "removed_without_decision"),
    )


def test_words_between_the_fields_of_a_reply_are_a_difference(hospital, tmp_path):
    lie(hospital, tmp_path, spoil=lambda reply: b"{ " + reply[1:])
    assert replayed(hospital, tmp_path).reasons == ("reply_not_canonical",)


# --- comparing


SOME = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float32)}


@given(st.floats(1e-6, 10), st.sampled_from(sorted(SOME)), st.floats(-3, 3))
def test_the_difference_is_relative_and_names_the_array_that_moved(distance, name, scale):
    received = {key: np.zeros_like(value) for key, value in SOME.items()}
    released = {key: (value * 10**scale).astype(np.float32) for key, value in SOME.items()}
    step = distance * float(np.sqrt(sum(np.sum(value.astype(float) ** 2) for value in released.values())))
    recomputed = {key: value.copy() for key, value in released.items()}
    recomputed[name].flat[0] += step
    found = compare(received, released, recomputed, tolerance=0.0)
    assert (found.reason, found.largest) == ("weights_differ", name)
    assert found.difference == pytest.approx(distance, rel=1e-2, abs=1e-6)


def test_a_release_equal_to_what_was_received_is_reproduced_by_an_equal_one_only():
    moved = SOME | {"b": SOME["b"] * 2}
    assert compare(SOME, SOME, SOME, tolerance=0.1).difference == 0.0
    found = compare(SOME, SOME, moved, tolerance=0.1)
    assert (found.reason, found.difference, found.largest) == ("weights_differ", None, "b")


@given(st.lists(st.sampled_from([*sorted(NOT_REPLAYABLE), "weights_differ", "secret_damaged"])))
def test_what_is_wrong_weighs_more_than_what_is_missing(reasons):
    wrong = bool({"weights_differ", "secret_damaged"} & set(reasons))
    assert verdict_of(reasons) == ("differs" if wrong else "not_replayable" if reasons else "reproduced")


# --- a hospital's site


DECLARED = POPULATION.model_copy(update={"ledger": None})


@pytest.fixture
def clinic(tmp_path):
    """A site with one image of each of eight patients, that answered one round."""
    site = make_site(tmp_path / "site", population=DECLARED, policy=PRIVATE)
    create_ledger(site.ledger, site="clinic", population=DECLARED.name)
    grow(site, *(found_image(site, f"{n}", patient=f"P{n}", grey=10 * n) for n in range(1, 9)))
    local_site(site, KEY.public_key(), device="cpu").train(private_order(), PRIVATE_WEIGHTS)
    return site


def grow(site, *found) -> None:
    with journal_of(site) as journal:
        assert set(add_all(journal, *found)) == {""}
        write_generation(site, journal)


def test_a_round_at_a_hospital_is_reproduced_from_its_own_generation_after_later_intakes(clinic):
    for n in range(9, 9 + KEPT):
        grow(clinic, found_image(clinic, f"{n}", patient=f"P{n}", grey=10 * n))
    found = replay_site(clinic, ROUND, coordinator=KEY.public_key(), device="cpu")
    assert (found.verdict, found.difference) == ("reproduced", 0.0)


def test_a_purged_patient_makes_the_round_not_replayable(clinic):
    purge_patient(clinic, "P3")
    found = replay_site(clinic, ROUND, coordinator=KEY.public_key(), device="cpu")
    assert (found.verdict, found.reasons) == ("not_replayable", ("generation_gone",))


def test_an_audited_hospital_gives_its_newest_order_and_what_it_would_train_on(clinic):
    site = real_site(clinic)
    plan, weights = site.last_order(site.read_ledger().entries)
    assert plan == private_plan()
    assert weights_sha256(weights) == weights_sha256(PRIVATE_WEIGHTS)
    assert site.population == DECLARED
    now = site.data(plan)
    assert now.store.fingerprint == clinic_fingerprint(site)
    for path in (clinic.ledger / ORDERS).iterdir():
        path.unlink()
    with pytest.raises(Refused, match="order_missing"):
        site.last_order(site.read_ledger().entries)


def clinic_fingerprint(site: AuditedSite) -> str:
    return site.read_ledger().entries[ROUND].body.binding.data_fingerprint


# --- a simulated site


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The folder of a run, its configuration, and the ledger of one of its sites with one round."""
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(
        data=str(data),
        cache=str(folder / "cache"),
        image_size=SIZE,
        hold_out="outside",
        dp="patient",
        dp_delta=DP.delta,
        dp_epsilon=DP.epsilon,
    )
    site = training_site(config, partition=1, nodes=7)
    site.device = "cpu"
    site.train(private_order(), PRIVATE_WEIGHTS)
    recorded = {key: value for key, value in config.flat().items() if key not in ("out", "cache", "data")}
    write_results(sample_results().model_copy(update={"job_id": "job", "config": recorded}), folder)
    return folder, config, site.hospital.name


def test_a_round_of_a_simulation_is_reproduced_from_its_run_folder(run):
    folder, config, name = run
    recorded = recorded_run(folder)
    again = recorded.run_config(data=config.data, cache=config.cache)
    found = replay_simulated(again, recorded.job_id, name, ROUND, device="cpu")
    assert (found.verdict, found.difference) == ("reproduced", 0.0)


def test_a_simulation_with_its_images_in_another_size_has_not_the_generation(run):
    _, config, name = run
    trained = simulated_site(config, "job", name)
    entries = trained.read_ledger().entries
    larger = config.model_copy(update={"image_size": 48, "cache": config.cache + "-other"})
    found = replay(replace(simulated_site(larger, "job", name), ledger=trained.ledger), entries, ROUND, device="cpu")
    assert (found.verdict, found.reasons) == ("not_replayable", ("generation_gone",))


def test_phantoms_are_drawn_for_as_many_hospitals_as_the_run_had(run):
    folder, _, _ = run
    assert recorded_run(folder).run_config().phantom_hospitals == len(sample_results().sites)


def test_a_simulated_site_s_budget_is_that_of_its_books(run):
    _, config, name = run
    site = simulated_site(config, "job", name)
    reserved = site.read_ledger().entries[ROUND].body
    limits = (reserved.limit_run, reserved.limit_lifetime, reserved.delta, reserved.dp.declared_patients)
    declared = site.population
    assert limits == (
        declared.epsilon_per_run,
        declared.epsilon_lifetime,
        declared.failure_probability,
        declared.declared_patients,
    )


def test_an_unknown_site_or_run_is_told(run, tmp_path):
    _, config, _ = run
    with pytest.raises(SiteError, match="no site of that name"):
        simulated_site(config, "job", "nobody")
    with pytest.raises(RunConfigError, match="folder of a run"):
        recorded_run(tmp_path)


def test_the_bytes_of_a_reply_are_read_without_being_committed(answered, ledger):
    entries = read_ledger(ledger).entries
    reservation = entries[ROUND].body
    assert isinstance(reservation, Reservation)
    kept = Reservations(ledger)
    assert kept.reply_bytes(ROUND, reservation) == only_file(answered / REPLIES).read_bytes()
    assert (ledger / FILE).read_bytes() == (answered / FILE).read_bytes()
    with pytest.raises(Refused, match="reply_purged"):
        kept.reply_bytes(ROUND + 1, reservation)


def test_a_result_holds_nothing_but_codes_names_and_numbers(hospital, answered):
    json.dumps(dataclasses.asdict(replayed(hospital, answered)), allow_nan=False)
