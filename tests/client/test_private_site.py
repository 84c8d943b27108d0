"""Private training at a hospital: what leaves, what it costs, what is refused, and what a crash leaves behind."""

import base64
import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image
from tiny_hospitals import (
    DP,
    KEY,
    METHOD,
    OPEN,
    POPULATION,
    PRIVATE,
    PRIVATE_METHOD,
    PRIVATE_WEIGHTS,
    WEIGHTS,
    dealt,
    order,
    private_order,
    private_plan,
    private_site,
    watched,
    write_radiographs,
)

from client.books import Books
from client.site import LocalSite, private_data
from multimix.contract.messages import LocalWork, canonical_json, weights_sha256
from multimix.contract.privacy import countersign
from multimix.contract.signing import SignedPlan, public_text, sign, simulation_key
from multimix.errors import Refused, StoreError
from multimix.network import MultiMixNetwork
from multimix.privacy.accountant import Mechanism, price
from multimix.privacy.entries import Commit, Evaluation, NonPrivate, Refusal, Reservation
from multimix.privacy.ledger import FILE, KEY_FILE, create_ledger, open_ledger, read_ledger
from multimix.privacy.officer import decide
from multimix.privacy.reservations import Reservations
from multimix.privacy.training import train_privately
from multimix.weights import load_into
from tests.privacy.test_ledger import disk_takes

STEP = Mechanism(DP.noise_multiplier, DP.sampling_rate)
OFFICER = simulation_key(7)
OFFICERS = POPULATION.model_copy(update={"officer_key": public_text(OFFICER)})
OPENLY = OPEN.model_copy(update={"minimum_expected_patients": 1.0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two states of the same hospitals' images: one image is another."""
    old = write_radiographs(tmp_path_factory.mktemp("old"))
    new = write_radiographs(tmp_path_factory.mktemp("new"))
    Image.fromarray(255 - np.asarray(Image.open(new / "both3.png"))).save(new / "both3.png")
    return old, new, tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hospitals(folders):
    return dealt(folders[0], folders[2] / "old")


@pytest.fixture(scope="module")
def hospital(hospitals):
    return hospitals["both"]


@pytest.fixture(scope="module")
def later(folders):
    """The same hospital after an intake."""
    return dealt(folders[1], folders[2] / "new")["both"]


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def site(hospital, ledger):
    return private_site(hospital, ledger)


def refusal(answer, signed, weights=PRIVATE_WEIGHTS) -> Refused:
    """Why it was refused; whatever the reason, the words name no patient and no path."""
    with pytest.raises(Refused) as caught:
        answer(signed, weights)
    for private in ("secret-", "/", ".png", "ledger.jsonl"):
        assert private not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


def bodies(ledger, kind) -> list:
    return [entry.body for entry in read_ledger(ledger).entries if isinstance(entry.body, kind)]


def sent(trained) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in trained.weights.items()}


def cost(steps: int) -> float:
    return price({STEP: steps}, delta=POPULATION.failure_probability).epsilon


def officer_signs(ledger, action) -> None:
    with open_ledger(ledger, site="both", population="patients") as opened:
        decide(opened, action, "agreed", OFFICER, officer_key=OFFICERS.officer_key)


# --- what leaves


def test_a_private_reply_is_the_noised_weights_and_the_proof_of_the_ledger_and_nothing_else(site, ledger):
    signed = private_order()
    report, weights = (answer := site.train(signed, PRIVATE_WEIGHTS)).report, answer.weights
    assert report.model_dump(exclude={"ledger"}) == {
        "site": "both",
        "job_id": "job",
        "round": 1,
        "plan_sha256": signed.sha256,
        "weights_sha256": weights_sha256(weights),
        "steps": 2,
        "teachers": {},
        "losses": {},
        "pseudo_label_rate": None,
        "seconds": {},
        "evaluation": None,
    }
    assert report.ledger.holds()
    assert report.ledger.head == read_ledger(ledger).head
    assert set(weights) == set(PRIVATE_WEIGHTS)
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in weights.values())


def test_a_private_reply_has_no_figures_though_plan_and_policy_would_let_them_out(hospital, ledger):
    policy = PRIVATE.model_copy(update={"release_evaluation": True, "minimum_cohort": 1})
    report = private_site(hospital, ledger, policy=policy).train(private_order(evaluate_on="test"), PRIVATE_WEIGHTS)
    assert report.report.evaluation is None
    assert bodies(ledger, Evaluation) == []


def test_only_the_modules_of_the_plan_leave(site):
    asked = private_order({"modules": ("classifier",), "module_weights": {"classifier": 8.0}})
    assert set(site.train(asked, PRIVATE_WEIGHTS).weights) == {"classifier.linear.weight", "classifier.linear.bias"}


def test_the_proof_leads_from_the_head_that_the_server_knows(site):
    first = site.train(private_order(), PRIVATE_WEIGHTS).report.ledger
    known = countersign("both", first, KEY)
    second = site.train(replace(private_order(round=2), countersigned=known), PRIVATE_WEIGHTS).report.ledger
    assert (second.since, len(second.digests), second.holds()) == (first.head, 2, True)


def test_what_is_reserved_says_what_the_round_costs_and_is_bound_to(site, ledger):
    signed = private_order()
    site.train(signed, PRIVATE_WEIGHTS)
    (reserved,) = bodies(ledger, Reservation)
    assert (reserved.binding.plan_sha256, reserved.binding.job_id, reserved.binding.round) == (signed.sha256, "job", 1)
    assert reserved.binding.weights_sha256 == weights_sha256(PRIVATE_WEIGHTS)
    assert reserved.binding.data_fingerprint == site.store.fingerprint
    assert (reserved.steps, reserved.total_steps, reserved.dp, reserved.seeded) == (2, 2 * DP.rounds, DP, False)
    assert reserved.epsilon_run == reserved.epsilon_lifetime == reserved.epsilon_private == cost(2)


# --- the same order again


@pytest.mark.parametrize("restarted", [False, True])
def test_the_same_order_is_answered_by_the_same_bytes_and_costs_nothing(hospital, site, ledger, restarted):
    first = site.train(private_order(), PRIVATE_WEIGHTS)
    entries = read_ledger(ledger).entries
    again = private_site(hospital, ledger) if restarted else site
    store = watched(again)
    second = again.train(private_order(), PRIVATE_WEIGHTS)
    assert (sent(second), second.report) == (sent(first), first.report)
    assert (store.reads, read_ledger(ledger).entries) == ([], entries)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("asked", "reason"), [({"seed": 6}, "plan_changed"), ({"round": 1}, "plan_replayed")])
def test_a_round_has_one_plan_and_rounds_do_not_go_back(hospital, site, ledger, asked, reason, restarted):
    site.train(private_order(round=2), PRIVATE_WEIGHTS)
    again = private_site(hospital, ledger) if restarted else site
    store = watched(again)
    for _ in range(2):
        assert refusal(again.train, private_order(**({"round": 2} | asked))).reason == reason
    assert store.reads == []
    assert [body.reason for body in bodies(ledger, Refusal)] == [reason]  # entered once
    assert len(bodies(ledger, Reservation)) == 1


def test_an_order_without_privacy_does_not_replace_the_private_one_of_its_round(hospital, site, ledger):
    site.train(private_order(), PRIVATE_WEIGHTS)
    assert refusal(private_site(hospital, ledger, policy=OPENLY).train, order(), WEIGHTS).reason == "plan_changed"


# --- budgets


def test_rounds_go_through_until_the_next_would_exceed_the_run_s_budget(hospital, ledger):
    affordable = next(rounds for rounds in range(9) if cost(2 * rounds + 2) > 1.2)
    assert affordable >= 2
    population = POPULATION.model_copy(update={"epsilon_per_run": 1.2})
    site = private_site(hospital, ledger, population=population)
    store, low = watched(site), {"epsilon": 1.2}
    for number in range(1, affordable + 1):
        site.train(private_order(low, round=number), PRIVATE_WEIGHTS)
    read = len(store.reads)
    for _ in range(2):
        refused = refusal(site.train, private_order(low, round=affordable + 1))
        assert refused.reason == "dp_budget_run"
    assert len(store.reads) == read > 0
    assert len(bodies(ledger, Reservation)) == affordable
    assert [body.reason for body in bodies(ledger, Refusal)] == ["dp_budget_run"]
    assert site.train(private_order(low, job_id="other"), PRIVATE_WEIGHTS)  # the lifetime allows another run


def test_the_lifetime_s_budget_holds_over_jobs(hospital, ledger):
    population = POPULATION.model_copy(update={"epsilon_lifetime": (cost(4) + cost(6)) / 2})
    site = private_site(hospital, ledger, population=population)
    site.train(private_order(job_id="a"), PRIVATE_WEIGHTS)
    site.train(private_order(job_id="b"), PRIVATE_WEIGHTS)
    store = watched(site)
    assert refusal(site.train, private_order(job_id="c")).reason == "dp_budget_lifetime"
    assert refusal(site.train, private_order(job_id="b", round=2)).reason == "dp_budget_lifetime"
    assert store.reads == []
    first, second = bodies(ledger, Reservation)
    assert (first.epsilon_run, second.epsilon_run) == (cost(2), cost(2))
    assert (first.epsilon_lifetime, second.epsilon_lifetime) == (cost(2), cost(4))


def test_patients_taken_in_later_inherit_the_history(later, site, ledger):
    first = site.train(private_order(), PRIVATE_WEIGHTS)
    after = private_site(later, ledger)
    assert after.store.fingerprint != site.store.fingerprint
    assert sent(after.train(private_order(), PRIVATE_WEIGHTS)) == sent(first)  # answered once, whatever came in since
    after.train(private_order(round=2), PRIVATE_WEIGHTS)
    reserved = bodies(ledger, Reservation)
    assert [body.binding.data_fingerprint for body in reserved] == [site.store.fingerprint, after.store.fingerprint]
    assert reserved[-1].epsilon_lifetime == cost(4)


def test_a_step_that_draws_nobody_adds_its_noise_and_is_paid_for(hospital, ledger):
    """At a rate of 1e-5 two steps over 8 patients draw somebody once in 6,250 runs."""
    policy = PRIVATE.model_copy(update={"minimum_expected_patients": 1e-9})
    site = private_site(hospital, ledger, policy=policy)
    store = watched(site)
    answer = site.train(private_order({"sampling_rate": 1e-5}), PRIVATE_WEIGHTS)
    assert store.reads == []
    assert all((answer.weights[name] != value).any() for name, value in PRIVATE_WEIGHTS.items())
    (reserved,) = bodies(ledger, Reservation)
    assert reserved.steps == 2


# --- refused


def dp(**changes):
    return lambda: private_order(changes)


BAD = {
    "another mechanism": (dp(mechanism="gaussian"), "dp_mechanism_unknown"),
    "no noise": (dp(noise_multiplier=0.0), "dp_parameters"),
    "negative noise": (dp(noise_multiplier=-2.0), "dp_parameters"),
    "absurd noise": (dp(noise_multiplier=1e300), "dp_parameters"),
    "no clipping": (dp(clip_norm=0.0), "dp_parameters"),
    "negative clipping": (dp(clip_norm=-1.0), "dp_parameters"),
    "nobody": (dp(sampling_rate=0.0), "dp_parameters"),
    "more than everybody": (dp(sampling_rate=1.5), "dp_parameters"),
    "delta 0": (dp(delta=0.0), "dp_parameters"),
    "delta 1": (dp(delta=1.0), "dp_parameters"),
    "no epsilon": (dp(epsilon=0.0), "dp_parameters"),
    "absurd epsilon": (dp(epsilon=1e9), "dp_parameters"),
    "no patients": (dp(declared_patients=0), "dp_parameters"),
    "absurdly many patients": (dp(declared_patients=10**9), "dp_parameters"),
    "no images": (dp(images_per_patient=0), "dp_parameters"),
    "no rounds": (dp(rounds=0), "dp_parameters"),
    "the encoder alone": (dp(modules=("encoder",), module_weights={"encoder": 8.0}), "dp_parameters"),
    "round 0": (lambda: private_order(round=0), "dp_rounds"),
    "no module": (dp(modules=(), module_weights={}), "dp_parameters"),
    "a module twice": (dp(modules=("encoder", "encoder"), module_weights={"encoder": 1.0}), "dp_parameters"),
    "weights of others": (dp(module_weights={"encoder": 1.0, "decoder": 1.0}), "dp_parameters"),
    "a module that the network has not": (
        dp(modules=("decoder",), module_weights={"decoder": 1.0}),
        "nothing_taught",
    ),
    "larger clip": (dp(clip_norm=10.1), "dp_clip_norm"),
    "less noise": (dp(noise_multiplier=0.49), "dp_noise"),
    "smaller cohort": (dp(sampling_rate=0.12), "dp_cohort"),
    "fewer patients": (dp(declared_patients=7), "dp_declared_patients"),
    "more patients": (dp(declared_patients=80), "dp_declared_patients"),
    "more images a patient": (dp(images_per_patient=3), "dp_images_per_patient"),
    "weaker delta": (dp(delta=0.011), "dp_delta"),
    "more epsilon": (dp(epsilon=3.1), "dp_epsilon"),
    "a round beyond the last": (lambda: private_order(round=DP.rounds + 1), "dp_rounds"),
    "all at once": (
        lambda: private_order({"noise_multiplier": 1.0}, work=LocalWork(steps=20, images_per_group=1, total_steps=100)),
        "dp_budget_run",
    ),
    "far beyond every budget": (
        lambda: private_order({"noise_multiplier": 0.5}, work=LocalWork(steps=99, images_per_group=1, total_steps=100)),
        "epsilon_too_large",
    ),
    "without privacy": (order, "dp_required"),
    "no work": (lambda: private_order(work=None), "plan_incomplete"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_bad_plan_has_its_reason_and_leaves_nothing_but_its_refusal(site, ledger, bad, reason):
    store = watched(site)
    for _ in range(2):
        signed = bad()
        assert refusal(site.train, signed).reason == reason
    assert store.reads == []
    assert [entry.body for entry in read_ledger(ledger).entries[1:]] == [
        Refusal(job_id="job", round=json.loads(signed.document)["round"], plan_sha256=signed.sha256, reason=reason)
    ]
    assert not (ledger / "secrets").exists()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"2.0"x', "null"])
@pytest.mark.parametrize("field", ["noise_multiplier", "clip_norm", "sampling_rate", "delta", "epsilon"])
def test_a_number_that_is_none_makes_a_plan_malformed(site, ledger, number, field):
    fields = json.loads(canonical_json(private_plan()))
    fields["dp"][field] = "HERE"
    text = json.dumps(fields).replace('"HERE"', number)
    signed = SignedPlan(text, base64.b64encode(KEY.sign(text.encode())).decode())
    assert refusal(site.train, signed).reason == "plan_malformed"
    assert len(read_ledger(ledger).entries) == 1


def test_an_order_of_somebody_else_is_not_even_entered(site, ledger):
    forged = sign(private_plan(), simulation_key(1))
    assert refusal(site.train, forged).reason == "plan_signature"
    assert len(read_ledger(ledger).entries) == 1


def test_the_privacy_of_a_run_stays_as_it_began(site, ledger):
    site.train(private_order(), PRIVATE_WEIGHTS)
    for change in ({"noise_multiplier": 2.1}, {"sampling_rate": 0.4}, {"modules": ("classifier", "encoder")}):
        assert refusal(site.train, private_order(change, round=2)).reason == "dp_changed"
    longer = private_order(round=2, work=LocalWork(steps=3, images_per_group=1, total_steps=100))
    assert refusal(site.train, longer).reason == "dp_changed"
    assert len(bodies(ledger, Reservation)) == 1


def test_a_held_out_site_does_not_train_privately_either(hospitals, ledger):
    site = private_site(hospitals["outside"], ledger)
    assert refusal(site.train, private_order()).reason == "site_held_out"
    assert [body.reason for body in bodies(ledger, Refusal)] == ["site_held_out"]
    assert bodies(ledger, Reservation) == []


def test_a_site_without_a_ledger_does_not_train_privately(hospital, ledger):
    site = LocalSite(hospital, PRIVATE, KEY.public_key(), device="cpu")
    assert refusal(site.train, private_order()).reason == "ledger_missing"
    site = private_site(hospital, ledger)
    shutil.rmtree(ledger)
    assert refusal(site.train, private_order()).reason == "ledger_missing"


# --- the ledger is not as it was


class Attack:
    """A site that has answered round 1, whose answer the server has countersigned."""

    def __init__(self, hospital, ledger):
        self.ledger, self.time = ledger, datetime.now(UTC)
        self.site = private_site(hospital, ledger, now=lambda: self.time)
        proof = self.site.train(private_order(), PRIVATE_WEIGHTS).report.ledger
        self.order = replace(private_order(round=2), countersigned=countersign("both", proof, KEY))
        self.lines = (ledger / FILE).read_bytes().splitlines(keepends=True)

    def write(self, *lines):
        (self.ledger / FILE).write_bytes(b"".join(lines))

    def edited(self):
        first, second, third = self.lines
        self.write(first, second.replace(b"steps", b"stepz", 1), third)

    def cheaper(self):
        first, second, third = self.lines
        self.write(first, second.replace(b"2.0", b"9.0"), third)

    def reordered(self):
        first, second, third = self.lines
        self.write(first, third, second)

    def truncated(self):
        self.write(*self.lines[:2])

    def begun_anew(self):
        shutil.rmtree(self.ledger)
        create_ledger(self.ledger, site="both", population="patients")

    def swapped(self):
        shutil.rmtree(self.ledger)
        create_ledger(self.ledger, site="masks", population="patients")

    def other_population(self):
        shutil.rmtree(self.ledger)
        create_ledger(self.ledger, site="both", population="children")

    def key_of_another(self):
        (self.ledger / KEY_FILE).write_bytes(b"k" * 32)

    def forged_countersignature(self):
        proof = self.order.countersigned.model_copy(update={"signature": "AA=="})
        self.order = replace(self.order, countersigned=proof)

    def clock_back(self):
        self.time -= timedelta(hours=1)


ATTACKS = {
    "edited": "ledger_damaged",
    "cheaper": "ledger_damaged",
    "reordered": "ledger_damaged",
    "truncated": "ledger_truncated",
    "begun_anew": "ledger_of_another_site",  # it has another key than the one countersigned
    "swapped": "ledger_of_another_site",
    "other_population": "ledger_of_another_site",
    "key_of_another": "ledger_of_another_site",
    "forged_countersignature": "countersignature_invalid",
    "clock_back": "ledger_clock_back",
}


@pytest.mark.parametrize(("attack", "reason"), ATTACKS.items(), ids=ATTACKS)
def test_a_ledger_that_is_not_as_it_was_trains_nothing_and_stays_so(hospital, ledger, attack, reason):
    attacked = Attack(hospital, ledger)
    getattr(attacked, attack)()
    before, store = (ledger / FILE).read_bytes(), watched(attacked.site)
    assert refusal(attacked.site.train, attacked.order).reason == reason
    assert ((ledger / FILE).read_bytes(), store.reads) == (before, [])


def test_two_agents_do_not_train_on_one_ledger(hospital, site, ledger):
    store = watched(site)
    with open_ledger(ledger, site="both", population="patients"):
        assert refusal(site.train, private_order()).reason == "ledger_busy"
    assert store.reads == []
    assert site.train(private_order(), PRIVATE_WEIGHTS)  # the other has ended


def test_on_a_full_disk_nothing_is_trained_and_nothing_lost(site, ledger):
    store, before = watched(site), (ledger / FILE).read_bytes()
    with disk_takes(len(before) + 100):  # room for the secret, not for the reservation
        assert refusal(site.train, private_order()).reason == "ledger_disk_full"
    assert (store.reads, (ledger / FILE).read_bytes()) == ([], before)
    assert site.train(private_order(), PRIVATE_WEIGHTS)


def test_a_server_that_withholds_what_it_countersigned_gets_nothing(hospital, ledger):
    attacked = Attack(hospital, ledger)
    attacked.site.train(attacked.order, PRIVATE_WEIGHTS)
    before, store = (ledger / FILE).read_bytes(), watched(attacked.site)
    withheld = private_order(round=3)
    assert refusal(attacked.site.train, withheld).reason == "countersignature_missing"
    assert ((ledger / FILE).read_bytes(), store.reads) == (before, [])
    shown = replace(withheld, countersigned=attacked.order.countersigned)
    assert attacked.site.train(shown, PRIVATE_WEIGHTS)


def test_a_refusal_is_entered_though_the_order_brings_no_countersignature(hospital, ledger):
    attacked = Attack(hospital, ledger)
    attacked.site.train(attacked.order, PRIVATE_WEIGHTS)
    assert refusal(attacked.site.train, order(), WEIGHTS).reason == "dp_required"
    assert [body.reason for body in bodies(ledger, Refusal)] == ["dp_required"]


class UnprovableBooks(Books):
    """Books whose ledger has grown too long to be proved."""

    def extension(self, ledger, known):
        raise Refused("ledger_extension_too_long")


def test_a_ledger_too_long_to_prove_refuses_before_anything_is_spent(hospital, site, ledger):
    books = UnprovableBooks(ledger, "both", POPULATION)
    unprovable = LocalSite(hospital, PRIVATE, KEY.public_key(), device="cpu", books_of=lambda _plan: books)
    store = watched(unprovable)
    assert refusal(unprovable.train, private_order()).reason == "ledger_extension_too_long"
    assert (store.reads, len(read_ledger(ledger).entries)) == ([], 1)


# --- a crash


def test_a_crash_in_training_stays_spent_and_the_retry_draws_the_same_noise(hospital, site, ledger):
    watched(site).faults.append(RuntimeError("out of memory"))
    assert refusal(site.train, private_order()).reason == "training_failed"
    (reserved,) = bodies(ledger, Reservation)
    assert bodies(ledger, Commit) == []
    restarted = private_site(hospital, ledger)
    answer = restarted.train(private_order(), PRIVATE_WEIGHTS)
    assert (bodies(ledger, Reservation), len(bodies(ledger, Commit))) == ([reserved], 1)

    secret = Reservations(ledger).secret_of(reserved)
    network = load_into(MultiMixNetwork(PRIVATE_METHOD.network), PRIVATE_WEIGHTS)
    plan = private_plan()
    alone = train_privately(
        network, private_data(hospital, restarted.store, plan), plan.method, plan.work, DP, secret=secret
    )
    assert {name: value.tobytes() for name, value in alone.items()} == sent(answer)


def test_a_retry_on_other_images_is_another_reservation_with_another_secret(later, site, ledger):
    watched(site).faults.append(RuntimeError("out of memory"))
    assert refusal(site.train, private_order()).reason == "training_failed"
    private_site(later, ledger).train(private_order(), PRIVATE_WEIGHTS)
    first, second = bodies(ledger, Reservation)
    assert first.commitment != second.commitment
    assert (first.epsilon_lifetime, second.epsilon_lifetime) == (cost(2), cost(4))  # the first stays spent


def test_what_a_crash_spent_counts_against_the_budget(hospital, ledger):
    population = POPULATION.model_copy(update={"epsilon_lifetime": (cost(2) + cost(4)) / 2})
    site = private_site(hospital, ledger, population=population)
    watched(site).faults.append(RuntimeError("out of memory"))
    assert refusal(site.train, private_order()).reason == "training_failed"
    assert refusal(site.train, private_order(round=2)).reason == "dp_budget_lifetime"


ERRORS = [
    StoreError("store_damaged", "secret-7 in /data/secret-7.png"),
    MemoryError("secret-7"),
    RuntimeError("secret-7"),
    OSError(5, "Input/output error", "/data/secret-7.png"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_breaks_training_is_one_reason_entered_once_and_logged_by_type_and_place(site, ledger, error, caplog):
    watched(site).faults.extend([error, error])
    for _ in range(2):
        refused = refusal(site.train, private_order())
        assert (refused.reason, refused.detail) == ("training_failed", "")
    assert [body.reason for body in bodies(ledger, Refusal)] == ["training_failed"]
    lines = [record.getMessage() for record in caplog.records if record.name == "multimix.client"]
    assert len(lines) == 2
    assert all(re.fullmatch(rf"training_failed: {type(error).__name__} at multimix[\w.]*:\d+", line) for line in lines)
    assert "secret-" not in caplog.text


def test_whatever_breaks_an_evaluation_is_one_reason_entered(hospital, ledger):
    policy = PRIVATE.model_copy(update={"release_evaluation": True, "minimum_cohort": 4})
    site = private_site(hospital, ledger, policy=policy)
    watched(site).faults.append(RuntimeError("secret-7"))
    assert refusal(site.evaluate, order("evaluate"), WEIGHTS).reason == "evaluation_failed"
    assert [body.reason for body in bodies(ledger, Refusal)] == ["evaluation_failed"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_agent_is_not_answered_by_a_refusal(site, ledger, stop):
    watched(site).faults.append(stop())
    with pytest.raises(stop):
        site.train(private_order(), PRIVATE_WEIGHTS)
    assert bodies(ledger, Refusal) == []


def test_a_site_without_books_tells_its_developer_what_broke(hospital):
    site = LocalSite(hospital, OPENLY, KEY.public_key(), device="cpu")
    watched(site).faults.append(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        site.train(order(), WEIGHTS)


# --- without privacy


def test_training_without_privacy_needs_the_officer_beside_the_policy(hospital, ledger):
    site = private_site(hospital, ledger, policy=OPENLY, population=OFFICERS)
    store = watched(site)
    assert refusal(site.train, order(), WEIGHTS).reason == "non_private_not_signed"
    assert (store.reads, bodies(ledger, NonPrivate)) == ([], [])
    officer_signs(ledger, "allow_non_private")
    report = site.train(order(), WEIGHTS).report
    (entered,) = bodies(ledger, NonPrivate)
    assert (entered.steps, entered.binding.plan_sha256) == (2, report.plan_sha256)
    assert report.ledger.holds()


def test_the_officer_s_word_does_not_replace_the_policy(hospital, ledger):
    site = private_site(hospital, ledger, population=OFFICERS)
    officer_signs(ledger, "allow_non_private")
    assert refusal(site.train, order(), WEIGHTS).reason == "dp_required"


def test_non_private_training_is_entered_before_it_begins(hospital, ledger):
    site = private_site(hospital, ledger, policy=OPENLY, population=OFFICERS)
    officer_signs(ledger, "allow_non_private")
    watched(site).faults.append(RuntimeError("out of memory"))
    assert refusal(site.train, order(), WEIGHTS).reason == "training_failed"
    assert len(bodies(ledger, NonPrivate)) == 1


def test_after_training_without_privacy_a_private_run_needs_the_officer_and_its_lifetime_is_infinite(hospital, ledger):
    site = private_site(hospital, ledger, policy=OPENLY, population=OFFICERS)
    officer_signs(ledger, "private_after_non_private")  # too early: nobody knew yet
    officer_signs(ledger, "allow_non_private")
    site.train(order(), WEIGHTS)
    store = watched(site)
    assert refusal(site.train, private_order(job_id="private")).reason == "population_exposed"
    assert (store.reads, bodies(ledger, Reservation)) == ([], [])
    officer_signs(ledger, "private_after_non_private")
    site.train(private_order(job_id="private", round=2), PRIVATE_WEIGHTS)
    (reserved,) = bodies(ledger, Reservation)
    assert (reserved.epsilon_lifetime, reserved.epsilon_run) == (None, cost(2))


# --- figures


def test_figures_leave_only_where_policy_releases_them_and_are_entered_once(hospital, ledger):
    asked = order("evaluate")
    fresh = private_site(hospital, ledger)
    assert refusal(fresh.evaluate, asked, WEIGHTS).reason == "evaluation_not_released"
    assert (bodies(ledger, Evaluation), len(bodies(ledger, Refusal))) == ([], 1)
    policy = PRIVATE.model_copy(update={"release_evaluation": True, "minimum_cohort": 4})
    for _ in range(2):
        site = private_site(hospital, ledger, policy=policy)
        report = site.evaluate(asked, WEIGHTS).report
    (entered,) = bodies(ledger, Evaluation)
    assert (entered.split, entered.minimum_cohort, entered.binding.plan_sha256) == ("test", 4, asked.sha256)
    assert report.ledger.head == read_ledger(ledger).head


FIGURES = PRIVATE.model_copy(update={"release_evaluation": True, "minimum_cohort": 4})


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("asked", "reason"), [({"seed": 6}, "plan_changed"), ({"round": 1}, "plan_replayed")])
def test_a_round_is_evaluated_by_one_plan_and_rounds_do_not_go_back(hospital, ledger, asked, reason, restarted):
    site = private_site(hospital, ledger, policy=FIGURES)
    site.evaluate(order("evaluate", round=5), WEIGHTS)
    again = private_site(hospital, ledger, policy=FIGURES) if restarted else site
    store = watched(again)
    assert refusal(again.evaluate, order("evaluate", **({"round": 5} | asked)), WEIGHTS).reason == reason
    assert store.reads == []
    assert len(bodies(ledger, Evaluation)) == 1
    assert again.evaluate(order("evaluate", round=5), WEIGHTS).report.ledger.holds()
    assert again.evaluate(order("evaluate", round=1, job_id="other"), WEIGHTS).report.round == 1


def test_after_an_intake_figures_are_given_to_a_new_plan_and_never_again_to_an_old_one(hospital, later, ledger):
    private_site(hospital, ledger, policy=FIGURES).evaluate(order("evaluate", round=5), WEIGHTS)
    after = private_site(later, ledger, policy=FIGURES)
    store = watched(after)
    assert refusal(after.evaluate, order("evaluate", round=5), WEIGHTS).reason == "data_changed"
    assert (store.reads, len(bodies(ledger, Evaluation))) == ([], 1)
    assert after.evaluate(order("evaluate", round=6), WEIGHTS).report.round == 6


def test_after_an_intake_open_training_does_not_give_its_figures_a_second_time(hospital, later, ledger):
    signed = order(evaluate_on="validation")
    site = private_site(hospital, ledger, policy=OPENLY, population=OFFICERS)
    officer_signs(ledger, "allow_non_private")
    site.train(signed, WEIGHTS)
    after = private_site(later, ledger, policy=OPENLY, population=OFFICERS)
    assert refusal(after.train, signed, WEIGHTS).reason == "data_changed"
    assert len(bodies(ledger, NonPrivate)) == 1


def test_the_last_round_of_open_training_and_the_final_scores_have_one_number_and_both_are_answered(hospital, ledger):
    site = private_site(hospital, ledger, policy=OPENLY, population=OFFICERS)
    officer_signs(ledger, "allow_non_private")
    site.train(order(evaluate_on="validation", round=3), WEIGHTS)
    assert site.evaluate(order("evaluate", round=3), WEIGHTS).report.split == "test"
    assert [body.split for body in bodies(ledger, Evaluation)] == ["validation", "test"]


def test_figures_that_ride_on_open_training_are_entered_too(hospital, ledger):
    site = private_site(hospital, ledger, policy=OPENLY, population=OFFICERS)
    officer_signs(ledger, "allow_non_private")
    report = site.train(order(evaluate_on="validation"), WEIGHTS).report
    assert report.evaluation is not None
    assert [body.split for body in bodies(ledger, Evaluation)] == ["validation"]


# --- frozen and reduced networks


def test_affine_training_sends_normalisation_and_the_last_layers_only(site):
    everything = ("encoder", "classifier", "decoder")
    asked = private_order(
        {"modules": everything, "module_weights": dict.fromkeys(everything, 8.0), "parameters": "affine"},
        method=METHOD,
        weights=WEIGHTS,
    )
    names = set(site.train(asked, WEIGHTS).weights)
    norms = {name for name in WEIGHTS if ".norm" in name}
    assert norms
    assert names == norms | {
        *("classifier.linear.weight", "classifier.linear.bias", "decoder.output.weight", "decoder.output.bias")
    }
