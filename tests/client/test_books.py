"""The books of a site: what an order costs, which budget it meets, and what the officer's word is worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_hospitals import DP, KEY, POPULATION, order, plan, private_plan

from client.books import Books, Order, check_order, check_provable, mechanism_of
from multimix.contract.messages import canonical_json, sha256_text
from multimix.contract.privacy import Extension, LedgerHead, countersign
from multimix.contract.signing import public_text, simulation_key
from multimix.errors import Refused
from multimix.privacy.accountant import Mechanism, price
from multimix.privacy.entries import Binding, Commit, Evaluation, NonPrivate, Refusal, Reservation
from multimix.privacy.ledger import create_ledger, read_ledger
from multimix.privacy.noise import commitment
from multimix.privacy.officer import decide
from multimix.privacy.reservations import Reservations
from tests.privacy import sample_ledger as sample

OFFICER = simulation_key(7)
STEPS = 2  # of each of the plans
STEP = Mechanism(noise_multiplier=2.0, sampling_rate=0.5)  # as DP


def cost(steps: int) -> float:
    return price({STEP: steps}, delta=0.01).epsilon


def books_of(folder, *, seed=None, **limits) -> Books:
    population = POPULATION.model_copy(update={"officer_key": public_text(OFFICER)} | limits)
    return Books(folder, "north", population, seed=seed)


@pytest.fixture
def folder(tmp_path):
    create_ledger(tmp_path / "ledger", site="north", population="patients")
    return tmp_path / "ledger"


@pytest.fixture
def books(folder):
    return books_of(folder)


@pytest.fixture
def ledger(books):
    with books.opened(None, KEY.public_key()) as ledger:
        yield ledger


def ordered(round_number=1, job_id="job", fingerprint="gen-1", asked=private_plan, packed=b"", **fields) -> Order:
    made = asked(round=round_number, job_id=job_id, **fields)
    return Order(made, Binding(**bound(made), data_fingerprint=fingerprint), packed)


def bound(made) -> dict:
    plan_sha256 = sha256_text(canonical_json(made))
    fields = {"job_id": made.job_id, "round": made.round, "weights_sha256": made.weights_sha256}
    return fields | {"plan_sha256": plan_sha256}


class Training:
    """Training that answers with a number of its own each time, and remembers the secrets it was given."""

    def __init__(self):
        self.secrets = []

    def __call__(self, secret: bytes) -> bytes:
        self.secrets.append(secret)
        return f"reply {len(self.secrets)}".encode()


def failing(secret: bytes) -> bytes:
    raise RuntimeError("out of memory")


def reason(call, *arguments) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.reason


def bodies(ledger, kind) -> list:
    return [entry.body for entry in ledger.entries if isinstance(entry.body, kind)]


def officer_signs(ledger, action) -> None:
    decide(ledger, action, "", OFFICER, officer_key=public_text(OFFICER))


# --- opened for an order


def head(length: int) -> LedgerHead:
    return LedgerHead(length=length, sha256="a" * 64)


@pytest.mark.parametrize(("entries", "too_long"), [(99_990, False), (99_991, True)])
def test_an_order_begins_only_where_its_entries_still_fit_into_a_proof(entries, too_long):
    proof = Extension(public_key="AA==", since=head(0), digests=("b" * 64,) * entries, head=head(entries))
    if too_long:
        assert reason(check_provable, proof) == "ledger_extension_too_long"
    else:
        check_provable(proof)


def test_once_countersigned_the_ledger_opens_only_for_who_shows_it_or_to_enter_a_refusal(books):
    with books.opened(None, KEY.public_key()) as ledger:
        known = countersign("north", books.extension(ledger, None), KEY)
    with books.opened(known, KEY.public_key()):
        pass
    with pytest.raises(Refused, match="countersignature_missing"), books.opened(None, KEY.public_key()):
        pass
    with books.opened_to_refuse() as ledger:
        books.enter_refusal(ledger, private_plan(), order().sha256, "dp_noise")
    with books.opened(known, KEY.public_key()) as ledger:
        assert len(bodies(ledger, Refusal)) == 1


# --- private orders


def test_an_order_is_reserved_trained_with_the_secret_committed_to_and_committed(books, ledger):
    train = Training()
    assert books.answer(ledger, ordered(), train) == b"reply 1"
    (reserved,), (secret,) = bodies(ledger, Reservation), train.secrets
    assert reserved.commitment == commitment(secret)
    assert [commit.reservation for commit in bodies(ledger, Commit)] == [1]


def test_the_same_order_is_not_trained_again(books, ledger):
    train = Training()
    assert [books.answer(ledger, ordered(), train) for _ in range(3)] == [b"reply 1"] * 3
    assert len(train.secrets) == 1


def test_each_order_has_a_secret_of_its_own(books, ledger):
    train = Training()
    for number in (1, 2, 3):
        books.answer(ledger, ordered(number), train)
    assert len(set(train.secrets)) == 3


def test_the_reservation_is_on_disk_before_training_begins(books, ledger, folder):
    seen = []

    def train(secret: bytes) -> bytes:
        seen.extend(bodies(read_ledger(folder), Reservation))
        return b"reply"

    books.answer(ledger, ordered(), train)
    assert [body.commitment for body in seen] == [body.commitment for body in bodies(ledger, Reservation)]
    assert len(seen) == 1


def test_training_that_failed_is_repeated_with_the_same_secret_and_paid_once(books, ledger):
    secrets = []

    def train(secret: bytes) -> bytes:
        secrets.append(secret)
        return b"reply" if len(secrets) > 1 else failing(secret)

    with pytest.raises(RuntimeError):
        books.answer(ledger, ordered(), train)
    assert books.answer(ledger, ordered(), train) == b"reply"
    assert (len(secrets), len(set(secrets))) == (2, 1)
    assert len(bodies(ledger, Reservation)) == 1


def test_a_round_that_failed_is_not_answered_after_a_later_one(books, ledger):
    with pytest.raises(RuntimeError):
        books.answer(ledger, ordered(1), failing)
    train = Training()
    books.answer(ledger, ordered(2), train)
    assert reason(books.answer, ledger, ordered(1), train) == "plan_replayed"
    assert len(train.secrets) == 1


def test_prices_are_on_top_of_all_that_was_spent(books, ledger):
    for number, job in ((1, "a"), (1, "b"), (2, "b")):
        books.answer(ledger, ordered(number, job), Training())
    reserved = bodies(ledger, Reservation)
    assert [body.epsilon_run for body in reserved] == [cost(2), cost(2), cost(4)]
    assert [body.epsilon_lifetime for body in reserved] == [cost(2), cost(4), cost(6)]


@pytest.mark.parametrize(
    ("limit", "refused"), [("epsilon_per_run", "dp_budget_run"), ("epsilon_lifetime", "dp_budget_lifetime")]
)
def test_a_budget_allows_what_costs_exactly_as_much_and_nothing_above(folder, limit, refused):
    train = Training()
    exact = books_of(folder, **{limit: cost(4)})
    with exact.opened(None, KEY.public_key()) as ledger:
        exact.answer(ledger, ordered(1), train)
        exact.answer(ledger, ordered(2), train)
        assert reason(exact.answer, ledger, ordered(3), train) == refused
        assert (len(train.secrets), len(ledger.entries)) == (2, 5)


def test_a_budget_that_was_lowered_holds_from_then_on(folder, books):
    with books.opened(None, KEY.public_key()) as ledger:
        books.answer(ledger, ordered(1), Training())
    lowered = books_of(folder, epsilon_lifetime=cost(2))
    with lowered.opened(None, KEY.public_key()) as ledger:
        assert reason(lowered.answer, ledger, ordered(2), Training()) == "dp_budget_lifetime"


def test_a_run_keeps_the_privacy_and_the_steps_that_it_began_with(books, ledger):
    books.answer(ledger, ordered(1), Training())
    changes = (
        {"dp": DP.model_copy(update={"noise_multiplier": 4.0})},  # more noise, but the server chose it having seen
        {"dp": DP.model_copy(update={"clip_norm": 0.5})},
        {"work": private_plan().work.model_copy(update={"steps": 1})},
    )
    for change in changes:
        changed = ordered(2, asked=lambda change=change, **fields: plan(**dict(private_plan(**fields)) | change))
        assert reason(books.answer, ledger, changed, Training()) == "dp_changed"
    other_run = ordered(1, "other", asked=lambda **fields: plan(**dict(private_plan(**fields)) | changes[0]))
    assert books.answer(ledger, other_run, Training()) == b"reply 1"


def test_a_simulation_s_secrets_are_known_and_told_as_such(folder, tmp_path):
    create_ledger(tmp_path / "again", site="north", population="patients")
    secrets = []
    for place in (folder, tmp_path / "again"):
        seeded, train = books_of(place, seed="5|job"), Training()
        with seeded.opened(None, KEY.public_key()) as ledger:
            seeded.answer(ledger, ordered(1), train)
            seeded.answer(ledger, ordered(2), train)
            assert [body.seeded for body in bodies(ledger, Reservation)] == [True, True]
        secrets.append(train.secrets)
    assert secrets[0] == secrets[1]
    assert secrets[0][0] != secrets[0][1]


def test_an_order_without_private_work_is_none(books, ledger):
    assert reason(books.answer, ledger, ordered(asked=plan), Training()) == "plan_incomplete"


# --- forecast


def test_as_many_rounds_are_left_as_then_go_through(folder):
    tight = books_of(folder, epsilon_per_run=1.2, epsilon_lifetime=1.5)
    with tight.opened(None, KEY.public_key()) as ledger:
        tight.answer(ledger, ordered(1, "before"), Training())
        left = tight.rounds_left(ledger.entries, "job", mechanism_of(DP), STEPS)
        assert left >= 1
        for number in range(1, left + 1):
            tight.answer(ledger, ordered(number), Training())
        assert tight.rounds_left(ledger.entries, "job", mechanism_of(DP), STEPS) == 0
        with pytest.raises(Refused, match="dp_budget"):
            tight.answer(ledger, ordered(left + 1), Training())


@pytest.mark.parametrize(("steps", "limit"), [(5000, 3.0), (20, 1000.0)])
def test_a_forecast_is_given_for_long_rounds_and_large_budgets(folder, books, steps, limit):
    wide = books_of(folder, epsilon_per_run=limit, epsilon_lifetime=limit)
    rare = Mechanism(noise_multiplier=20.0, sampling_rate=0.001)
    assert wide.rounds_left(read_ledger(folder).entries, "job", rare, steps) > 0


# --- what else is entered


def test_training_without_privacy_is_entered_once_the_officer_has_signed(books, ledger):
    asked = ordered(asked=plan)
    assert reason(books.enter_non_private, ledger, asked) == "non_private_not_signed"
    assert bodies(ledger, NonPrivate) == []
    officer_signs(ledger, "allow_non_private")
    books.enter_non_private(ledger, asked)
    assert bodies(ledger, NonPrivate) == [NonPrivate(binding=asked.binding, steps=2)]


def test_one_signature_allows_open_training_from_then_on(books, ledger):
    officer_signs(ledger, "allow_non_private")
    for number in (1, 2):
        books.enter_non_private(ledger, ordered(number, asked=plan))
    assert len(bodies(ledger, NonPrivate)) == 2


@pytest.mark.parametrize("action", ["note", "secrets_purged", "private_after_non_private"])
def test_another_decision_does_not_allow_open_training(books, ledger, action):
    officer_signs(ledger, action)
    assert reason(books.enter_non_private, ledger, ordered(asked=plan)) == "non_private_not_signed"


def test_a_site_that_names_no_officer_has_no_decision(folder, books):
    with books.opened(None, KEY.public_key()) as ledger:
        officer_signs(ledger, "allow_non_private")
    without = books_of(folder, officer_key=None)
    with without.opened(None, KEY.public_key()) as ledger:
        assert reason(without.enter_non_private, ledger, ordered(asked=plan)) == "non_private_not_signed"


def test_private_training_after_open_training_needs_a_signature_made_since(books, ledger):
    officer_signs(ledger, "private_after_non_private")
    officer_signs(ledger, "allow_non_private")
    books.enter_non_private(ledger, ordered(1, "open", asked=plan))
    train = Training()
    assert reason(books.answer, ledger, ordered(), train) == "population_exposed"
    officer_signs(ledger, "private_after_non_private")
    books.answer(ledger, ordered(), train)
    (reserved,) = bodies(ledger, Reservation)
    assert (reserved.epsilon_lifetime, reserved.epsilon_private) == (None, cost(2))
    books.enter_non_private(ledger, ordered(2, "open", asked=plan))
    assert reason(books.answer, ledger, ordered(2), train) == "population_exposed"
    assert len(train.secrets) == 1


def test_the_figures_of_an_order_are_entered_once(books, ledger):
    asked = ordered(asked=lambda **fields: plan("evaluate", **fields))
    for _ in range(2):
        books.enter_evaluation(ledger, asked, 10)
    assert bodies(ledger, Evaluation) == [Evaluation(binding=asked.binding, split="test", minimum_cohort=10)]
    assert reason(books.enter_evaluation, ledger, ordered(asked=plan), 10) == "plan_incomplete"


def test_a_refusal_is_entered_once_and_another_reason_is_another(books, ledger):
    made = private_plan()
    for why in ("dp_noise", "dp_noise", "dp_epsilon"):
        books.enter_refusal(ledger, made, order().sha256, why)
    assert [body.reason for body in bodies(ledger, Refusal)] == ["dp_noise", "dp_epsilon"]


# --- the order of rounds


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["a", "b"]), st.sampled_from(["reserved", "open"])), max_size=10
    )
)
def test_what_goes_through_never_goes_back_and_has_one_plan_a_round(orders):
    entered, admitted = [], []
    for number, text, kind in orders:
        entries = sample.ledger(entered)
        binding = sample.binding("job", number).model_copy(update={"plan_sha256": sample.sha(text)})
        try:
            check_order(entries, plan(round=number), binding.plan_sha256)
        except Refused:
            continue
        admitted.append((number, text))
        reserved = sample.reservation("job", number, binding=binding)
        entered.append(reserved if kind == "reserved" else NonPrivate(binding=binding, steps=1))
    rounds = [number for number, _ in admitted]
    assert rounds == sorted(rounds)
    assert len(set(admitted)) == len(set(rounds))


def test_runs_do_not_get_in_each_other_s_way():
    entries = sample.ledger([sample.reservation("other", 9)])
    check_order(entries, plan(round=1), sample.sha("a"))
    assert reason(check_order, entries, plan(round=1, job_id="other"), sample.sha("a")) == "plan_replayed"


def test_an_order_is_kept_before_training_begins(books, ledger, folder):
    binding = ordered().binding
    seen = []

    def train(_secret: bytes) -> bytes:
        seen.append(Reservations(folder).order_of(binding))
        return b"reply"

    books.answer(ledger, ordered(packed=b"what was asked"), train)
    assert seen == [b"what was asked"]


def test_a_run_is_private_or_not_from_its_first_round_on(books, ledger):
    officer_signs(ledger, "allow_non_private")
    books.answer(ledger, ordered(1), Training())
    assert reason(books.enter_non_private, ledger, ordered(2)) == "dp_changed"
    books.enter_non_private(ledger, ordered(1, "open", asked=plan))
    officer_signs(ledger, "private_after_non_private")
    assert reason(books.answer, ledger, ordered(2, "open"), Training()) == "dp_changed"
    assert books.answer(ledger, ordered(1, "another"), Training()) == b"reply 1"


def test_delta_never_rises(folder):
    with books_of(folder).opened(None, KEY.public_key()) as ledger:
        books_of(folder).answer(ledger, ordered(1), Training())
        raised = books_of(folder, delta=0.011)
        assert reason(raised.answer, ledger, ordered(2), Training()) == "dp_delta_raised"
        lowered = books_of(folder, delta=0.009)
        assert lowered.answer(ledger, ordered(2), Training()) == b"reply 1"
