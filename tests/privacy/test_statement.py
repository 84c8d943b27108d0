"""The DP statement says everything that was asked of it, in all three forms, and never less than the worst case."""

import math
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from multimix.contract.privacy import LedgerHead
from multimix.errors import Refused, SiteError
from multimix.privacy import statement_words as words
from multimix.privacy.accountant import Price
from multimix.privacy.history import mechanism_of
from multimix.privacy.statement import Statement, build_statement
from multimix.privacy.statement_chart import chart_of
from multimix.privacy.statement_page import as_html, as_json, as_markdown
from multimix.privacy.statement_sections import upwards
from tests.privacy import sample_ledger as sample

PER_STEP = 0.01
GAP = 0.003
STEPS = 16
DELTA = 1e-3
FORMS = {"json": as_json, "html": as_html, "markdown": as_markdown}


def linear_price(history, /, *, delta):
    """A fake accountant: epsilon in proportion to steps over sigma; the second one a little below."""
    epsilon = sum(PER_STEP * steps / mechanism.noise_multiplier for mechanism, steps in history.items())
    return Price(epsilon=epsilon, prv=epsilon, pld=epsilon - GAP, delta=delta)


def reservation(job_id="first", round_number=1, *, run=1, lifetime=1, **changes):
    """A reservation whose prices are right: `run` and `lifetime` are the reservations so far, of it and of all."""
    private = PER_STEP * STEPS * lifetime
    prices = {
        "epsilon_run": PER_STEP * STEPS * run,
        "epsilon_lifetime": private,
        "epsilon_private": private,
        "steps": STEPS,
    }
    return sample.reservation(job_id, round_number, **(prices | changes))


def statement_of(bodies, **changes):
    entries = sample.ledger(bodies)
    head = sample.head_of(entries)
    values = {
        "head": head,
        "countersignature": sample.countersigned(head),
        "coordinator_key": sample.COORDINATOR_KEY,
        "declared_patients": 487,
        "images_per_patient": 4,
        "delta": DELTA,
        "delta_reason": "half of one in N",
        "limit_run": 4.0,
        "limit_lifetime": 8.0,
        "forecast_rounds": 3107,
        "accountant_versions": {"Opacus PRV": "1.6.0", "Google dp-accounting PLD": "0.6.0"},
        "price": linear_price,
    }
    return build_statement(entries, **(values | changes))


def two_runs():
    """Two rounds of one run, of which the second has no commit, and one of another; 48 steps in all."""
    quiet = sample.patient_privacy(noise_multiplier=2.0, clip_norm=0.25, modules=("decoder",))
    third = 2 * PER_STEP * STEPS + PER_STEP * STEPS / 2
    last = {"epsilon_run": PER_STEP * STEPS / 2, "epsilon_lifetime": third, "epsilon_private": third}
    return [
        reservation("first", 1),
        sample.commit(1),
        reservation("first", 2, run=2, lifetime=2),
        reservation("second", 1, dp=quiet, **last),
        sample.commit(4),
    ]


def everything():
    return [*two_runs(), sample.evaluation(), sample.refusal(), sample.officer(), sample.tuning()]


def kinds(statement):
    return {notice.kind for notice in statement.notices}


def plain(text):
    """Markdown without its escapes, so that one expectation serves all forms."""
    return re.sub(r"\\(\W|_)", r"\1", text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sentence", [words.UNIT, words.ADJACENCY, words.TRUST, words.SETTING, words.SAMPLER, words.GENERATOR, words.OUTPUT, words.ACCOUNTING, words.RESERVED, words.RELEASED_HEAD, words.RELEASED_EVALUATIONS, *words.NOT_COVERED])  # fmt: skip
def test_every_sentence_of_the_guarantee_is_in_every_form(form, sentence):
    text = FORMS[form](statement_of(everything()))
    if form == "html":
        text = text.replace("&#39;", "'")
    assert sentence in (plain(text) if form == "markdown" else text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "item",
    {
        "site": sample.SITE,
        "population": "adults",
        "fingerprint": "gen-1-4711",
        "declared patients": "487",
        "reason for delta": "half of one in N",
        "delta": "0.001",
        "forecast": "3107",
        "refusal": "budget_run_exceeded",
        "refused run": "greedy",
        "clip norm": "0.25",
        "sampling rate": "0.064",
        "accountant": "Google dp-accounting PLD",
        "accountant's version": "1.6.0",
        "code": "0.1.0+abc",
        "configuration": sample.sha("method"),
        "plan": sample.sha("plan second 1"),
        "ledger's key": sample.LEDGER_KEY,
        "coordinator's key": sample.COORDINATOR_KEY,
        "officer": "agreed with the ethics board",
        "tuning": "learning rate, on phantoms",
        "evaluation": "validation",
    }.items(),
    ids=lambda item: item[0],
)
def test_every_demanded_fact_is_in_every_form(form, item):
    assert item[1] in plain(FORMS[form](statement_of(everything())))


@pytest.mark.parametrize("form", FORMS)
def test_ledger_head_and_countersignature_are_in_every_form(form):
    statement = statement_of(everything())
    text = FORMS[form](statement).replace("&#43;", "+")
    assert statement.ledger.head.sha256 in text
    assert statement.ledger.countersignature.signature in text


def test_epsilon_is_priced_anew_over_all_reservations_and_by_run():
    statement = statement_of(two_runs())
    assert statement.lifetime.epsilon == pytest.approx(2 * PER_STEP * STEPS + PER_STEP * STEPS / 2)
    assert [run.account.epsilon for run in statement.runs] == pytest.approx([0.32, 0.08])
    assert statement.lifetime.difference == pytest.approx(GAP)
    assert statement.lifetime.steps == 3 * STEPS


def test_uncommitted_reservations_are_counted_and_stated():
    statement = statement_of(two_runs())
    assert (statement.lifetime.reservations, statement.lifetime.uncommitted) == (3, 1)
    assert "uncommitted" in kinds(statement)
    for form in FORMS.values():
        assert "Reservations without a committed answer: 1 of 3" in form(statement)


def test_the_mechanisms_are_told_apart_with_their_steps():
    uses = statement_of(two_runs()).uses
    assert [(use.noise_multiplier, use.clip_norm, use.steps) for use in uses] == [(1.0, 0.5, 32), (2.0, 0.25, 16)]


def test_a_quiet_ledger_has_no_notices():
    assert statement_of([reservation(), sample.commit(1)]).notices == ()


def test_an_empty_ledger_has_spent_nothing():
    statement = statement_of([], forecast_rounds=None)
    assert (statement.lifetime.epsilon, statement.runs, statement.forecast_rounds) == (0.0, (), None)
    assert "not known" in as_html(statement)


@pytest.mark.parametrize("form", FORMS)
def test_non_private_training_is_infinity_beside_the_part_with_noise(form):
    statement = statement_of([reservation(), sample.commit(1), sample.non_private()])
    assert statement.lifetime.epsilon == "infinity"
    assert statement.lifetime.epsilon_private == pytest.approx(PER_STEP * STEPS)
    text = FORMS[form](statement)
    assert "infinity" in text
    assert words.RELEASED_NON_PRIVATE in text
    assert "Trainings without differential privacy: 1 (10 steps)" in plain(text)


def test_a_run_with_noise_stays_finite_where_another_was_without():
    statement = statement_of([reservation(), sample.commit(1), sample.non_private()])
    by_name = {run.job_id: run.account for run in statement.runs}
    assert by_name["first"].epsilon == pytest.approx(PER_STEP * STEPS)
    assert (by_name["plain"].epsilon, by_name["plain"].epsilon_private) == ("infinity", 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_known_noise_is_not_private_and_says_so_first(form):
    statement = statement_of([reservation(seeded=True), sample.commit(1)])
    assert statement.lifetime.epsilon == "infinity"
    assert statement.notices[0].kind == "simulation"
    text = plain(FORMS[form](statement))
    banner = text.index("NOT PRIVATE: simulation with known noise")
    assert banner < text.index(words.UNIT)
    assert words.SEEDED_GENERATOR in text
    assert words.GENERATOR not in text


def test_one_known_seed_spoils_the_lifetime_but_no_other_run():
    statement = statement_of([reservation("first"), reservation("second", seeded=True, lifetime=2)])
    assert [run.account.epsilon for run in statement.runs] == [pytest.approx(0.16), "infinity"]
    assert statement.lifetime.epsilon == "infinity"


def test_a_run_has_only_itself_and_the_lifetime():
    statement = statement_of(everything(), job_id="second")
    assert (statement.scope, statement.job_id) == ("run", "second")
    assert [run.job_id for run in statement.runs] == ["second"]
    assert statement.run.epsilon == pytest.approx(PER_STEP * STEPS / 2)
    assert statement.run.uncommitted == 0  # its commit is its own
    assert statement.lifetime.epsilon == pytest.approx(0.4)
    assert [use.modules for use in statement.uses] == [("decoder",)]
    assert (statement.refusals, statement.evaluations) == ((), ())
    assert statement.provenance.plan_sha256 == (sample.sha("plan second 1"),)
    page = as_html(statement)
    assert "Epsilon, this run" in page
    assert "Epsilon, lifetime" in page
    assert ">first<" not in page


def test_a_run_that_was_only_refused_has_spent_nothing():
    statement = statement_of(everything(), job_id="greedy")
    assert statement.run.epsilon == 0.0
    assert len(statement.refusals) == 1


def test_a_run_that_the_ledger_does_not_know_is_refused():
    with pytest.raises(SiteError) as error:
        statement_of(two_runs(), job_id="never")
    assert error.value.reason == "run_unknown"


@pytest.mark.parametrize(
    ("written", "told"), [(0.16, False), (0.16 + 0.021, False), (0.16 + 0.0221, True), (0.1, True)]
)
def test_prices_in_the_ledger_may_differ_by_two_hundredths_and_a_percent(written, told):
    bound = 0.02 + 0.01 * 0.16
    assert (abs(written - 0.16) > bound) == told
    statement = statement_of([reservation(epsilon_run=written), sample.commit(1)])
    assert ("disagreement" in kinds(statement)) == told
    assert statement.runs[0].account.epsilon == pytest.approx(0.16)


def test_the_written_lifetime_is_compared_too():
    assert "disagreement" in kinds(statement_of([reservation(epsilon_private=0.01), sample.commit(1)]))


def test_a_finite_lifetime_written_after_training_without_privacy_is_told():
    honest = [sample.non_private(), reservation(epsilon_lifetime=None)]
    lying = [sample.non_private(), reservation()]
    assert "disagreement" not in kinds(statement_of(honest))
    assert "disagreement" in kinds(statement_of(lying))


def test_the_written_price_is_compared_at_the_delta_that_it_was_written_for():
    asked = []

    def price(history, /, *, delta):
        asked.append(delta)
        return linear_price(history, delta=delta)

    statement_of([reservation(delta=2e-3), sample.commit(1)], price=price)
    assert asked == [DELTA, 2e-3]


def test_above_a_limit_is_told():
    assert "over_limit" in kinds(statement_of(two_runs(), limit_lifetime=0.39))
    assert "over_limit" in kinds(statement_of(two_runs(), limit_run=0.31))
    assert "over_limit" not in kinds(statement_of(two_runs(), limit_run=0.33, limit_lifetime=0.41))


def test_a_delta_of_one_in_n_is_told():
    assert "delta_too_large" in kinds(statement_of([], declared_patients=1000))
    assert "delta_too_large" not in kinds(statement_of([], declared_patients=999))


def test_an_epsilon_past_the_accountants_is_infinity():
    def price(history, /, *, delta):
        raise Refused("epsilon_too_large")

    statement = statement_of([reservation()], price=price)
    assert (statement.lifetime.epsilon, statement.lifetime.epsilon_private) == ("infinity", "infinity")
    assert Statement.model_validate_json(as_json(statement)) == statement
    assert "infinity" in as_html(statement)


def test_accountants_that_disagree_give_no_statement():
    def price(history, /, *, delta):
        raise Refused("accountants_disagree")

    with pytest.raises(Refused, match="accountants_disagree"):
        statement_of([reservation()], price=price)


@pytest.mark.parametrize("job_id", [None, "second"])
def test_the_json_is_read_back_as_it_was(job_id):
    statement = statement_of([*everything(), sample.non_private()], job_id=job_id)
    assert Statement.model_validate_json(as_json(statement)) == statement


def test_a_cut_ledger_gives_no_statement():
    entries = sample.ledger(two_runs())
    with pytest.raises(SiteError) as error:
        statement_of(two_runs()[:-1], head=sample.head_of(entries))
    assert error.value.reason == "ledger_incomplete"


def test_a_countersignature_of_an_earlier_head_says_how_much_was_written_since():
    entries = sample.ledger(two_runs())
    statement = statement_of(two_runs(), countersignature=sample.countersigned(sample.head_of(entries[:4])))
    assert statement.ledger.entries_since == len(entries) - 4
    assert "of 4 entries; 2 entries were written since" in as_html(statement)


def test_no_countersignature_is_said():
    page = as_html(statement_of(two_runs(), countersignature=None))
    assert "the coordinator has not seen this ledger" in page


@pytest.mark.parametrize(
    "countersignature",
    [
        sample.countersigned(LedgerHead(length=3, sha256=sample.sha("another ledger"))),
        sample.countersigned(LedgerHead(length=99, sha256=sample.sha("a longer ledger"))),
        sample.countersigned(sample.head_of(sample.ledger(two_runs())), site="south"),
    ],
    ids=["conflicting", "longer", "another site"],
)
def test_a_countersignature_of_another_ledger_gives_no_statement(countersignature):
    with pytest.raises(SiteError) as error:
        statement_of(two_runs(), countersignature=countersignature)
    assert error.value.reason == "countersignature_of_another_ledger"


def test_a_countersignature_by_another_key_gives_no_statement():
    other = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
    forged = sample.countersigned(sample.head_of(sample.ledger(two_runs())), key=other)
    with pytest.raises(SiteError) as error:
        statement_of(two_runs(), countersignature=forged)
    assert error.value.reason == "countersignature_invalid"


def test_a_countersignature_that_nobody_checked_is_not_called_checked():
    assert "not checked" in as_markdown(statement_of(two_runs(), coordinator_key=None))


NASTY = "</title><script>alert(1)</script> | `x` *y* [z](http://e.vil) & \n# heading"


@pytest.mark.parametrize("field", ["delta_reason", "officer", "tuning", "fingerprint"])
def test_html_escapes_whatever_a_text_contains(field):
    page = as_html(nasty(field))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("field", ["delta_reason", "officer", "tuning", "fingerprint"])
def test_markdown_escapes_whatever_a_text_contains(field):
    text = as_markdown(nasty(field))
    assert "<script" not in text.replace(r"\<", "")
    assert "\n# heading" not in text
    assert r"\| \`x\` \*y\* \[z\](http" in text


def nasty(field):
    bodies = {
        "officer": [sample.officer(NASTY)],
        "tuning": [sample.tuning(NASTY)],
        "fingerprint": [reservation(binding=sample.binding(fingerprint=NASTY.replace("\n", "")))],
    }
    return statement_of(bodies.get(field, []), **({"delta_reason": NASTY} if field == "delta_reason" else {}))


def test_the_page_fetches_nothing_and_runs_nothing():
    page = as_html(statement_of(everything()))
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<script|<link|<img|<iframe|\bsrc=|\bhref=|@import|url\((?!#)", page)


def test_every_table_of_the_markdown_is_rectangular():
    text = as_markdown(statement_of([*everything(), sample.officer(NASTY)]))
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(blocks) == 8  # accounts, runs, mechanisms, prices, refusals, evaluations, tuning, officer
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_picture_has_a_bar_and_a_limit_for_each_run_and_the_lifetime():
    drawn = chart_of(statement_of(two_runs()))
    assert drawn.count('class="mark"') == drawn.count('class="limit"') == 3
    assert '<title id="spent">Epsilon spent' in drawn
    assert 'aria-labelledby="spent"' in drawn


def test_the_picture_marks_what_is_above_its_limit_or_without_end():
    assert chart_of(statement_of(two_runs(), limit_run=0.31)).count('rect class="bad" x') == 1
    assert chart_of(statement_of([sample.non_private()])).count('class="endless"') == 2  # the run and the lifetime


def test_bars_are_as_long_as_their_epsilon():
    drawn = chart_of(statement_of(two_runs()))
    first, second, lifetime = (float(width) for width in re.findall(r'class="mark"[^>]* width="([\d.]+)"', drawn))
    assert first / second == pytest.approx(0.32 / 0.08, rel=0.01)
    assert lifetime / second == pytest.approx(0.4 / 0.08, rel=0.01)


@given(st.floats(1e-12, 1e6))
def test_a_price_is_never_printed_below_what_it_is(value):
    assert value * (1 - 1e-11) <= float(upwards(value)) <= value * 1.0011


def test_many_runs_stay_on_the_page_with_a_word_on_the_rest():
    bodies = [reservation(f"run-{number}", lifetime=number + 1) for number in range(40)]
    statement = statement_of(bodies)
    page = as_html(statement)
    assert "10 earlier, in the JSON" in page
    assert "run-9<" not in page
    assert "run-10<" in page
    assert len(statement.runs) == 40


def test_the_real_accountants_agree_with_the_ledger_that_they_priced():
    from multimix.privacy.accountant import price

    body = sample.reservation(steps=16)
    real = price({mechanism_of(body): 16}, delta=DELTA)
    written = {"epsilon_run": real.epsilon, "epsilon_lifetime": real.epsilon, "epsilon_private": real.epsilon}
    statement = statement_of([body.model_copy(update=written), sample.commit(1)], price=price)
    assert statement.notices == ()
    assert math.isclose(statement.lifetime.epsilon, max(real.prv, real.pld))
