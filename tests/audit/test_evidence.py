"""What the evidence comes to: contradicted, incomplete or consistent, never more than was looked at."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.audit.direct_tests import NUMBER_OF_TESTS
from multimix.audit.estimators import Guesses, fdp_gaussian_epsilon
from multimix.audit.evidence.build import software_versions
from multimix.audit.evidence.figures import figures_of, lifetime_of, relied_on
from multimix.audit.evidence.records import canonical, evidence_json, read_evidence
from multimix.audit.evidence.replays import executed, reproduced
from multimix.audit.evidence.verdict import judge
from multimix.audit.membership import permitted_tpr
from multimix.errors import InputError
from tests.audit import sample_evidence as audit
from tests.audit.ledger_attacks import OTHER, heads_of, signed_again, written
from tests.privacy import sample_ledger as sample

RAW, WHOLE = audit.whole()


def with_(**changes):
    return audit.whole(**changes)[1].judgement


def test_evidence_in_which_nothing_is_missing_is_consistent():
    assert (WHOLE.judgement.word, WHOLE.judgement.contradictions, WHOLE.judgement.gaps) == ("consistent", (), ())


@pytest.mark.parametrize(
    ("changes", "gap"),
    [
        ({"heads": None}, "Truncation not checkable"),
        ({"heads": heads_of(RAW, (2,))}, "3 entries are newer"),
        ({"keys": audit.KEYS.model_copy(update={"coordinator": None})}, "The coordinator's key was not given"),
        ({"statement": None}, "The site's statement was not given"),
        ({"empirical": ()}, "No empirical audit was made"),
        ({"empirical": (audit.empirical(noise_multiplier=2.0),)}, "No empirical audit took the steps of run first"),
        ({"empirical": (audit.empirical(clip_norm=1.0),)}, "No empirical audit took the steps of run first"),
        ({"empirical": (audit.empirical(steps=33),)}, "No empirical audit took the steps of run first"),
        ({"empirical": (audit.empirical(code="another"),)}, "ran other software"),
        ({"empirical": (audit.empirical(claimed_epsilon=9.0),)}, "held against a larger epsilon"),
        (
            {"empirical": (audit.empirical(bounds=(audit.bound("fdp_gaussian", 0.5, claimed_epsilon=9.0),)),)},
            "held against a larger epsilon",
        ),
        ({"replays": ()}, "No round was executed again"),
        ({"replays": (audit.replayed(),)}, "1 of 2 answered rounds"),
        ({"replays": (audit.replayed(), audit.replayed())}, "1 of 2 answered rounds"),
        ({"replays": (audit.replayed(tolerance=1e-2), audit.replayed(3, 2))}, "differ by up to 0.01 of an update"),
        ({"empirical": (audit.empirical(bounds=(audit.bound("steinke", 1.9, 1e-3),)),)}, "bound above its claim"),
        ({"empirical": (audit.empirical(false_alarm_rate=1e-9),)}, "told to flag less"),
        (
            {
                "replays": (
                    audit.replayed(),
                    audit.replayed(3, 2, verdict="not_replayable", reasons=("generation_gone",)),
                )
            },
            "1 of 2 answered rounds",
        ),
    ],
)
def test_whatever_was_not_looked_at_makes_it_incomplete_and_is_named(changes, gap):
    judgement = with_(**changes)
    assert judgement.word == "incomplete"
    assert [text for text in judgement.gaps if gap in text]


def test_an_open_reservation_is_named():
    judgement = with_(raw=written(audit.bodies()[:-1]), replays=(audit.replayed(),))
    assert judgement.word == "incomplete"
    assert any("1 reservation was never answered" in text for text in judgement.gaps)


def test_a_ledger_without_private_training_has_no_claim_to_check():
    judgement = with_(raw=written([sample.refusal()]), statement=None, replays=())
    assert judgement.word == "incomplete"
    assert any("no claim to check" in text for text in judgement.gaps)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"empirical": (audit.empirical(tests=()), audit.empirical(tests=(audit.empirical().tests[0].model_copy(update={"flagged": True}),)))}, "Empirical audit 2 flags the trainer: noise."),
        ({"replays": (audit.replayed(3, 2, verdict="differs", reasons=("weights_differ",)),)}, "Entry 3 was executed again"),
        ({"membership": (audit.membership(auc=0.97, permitted_auc=0.92),)}, "does better than epsilon 2.4 permits"),
        ({"statement": audit.statement_of(RAW, limit_lifetime=1.0)}, "above the limit"),
        ({"statement": audit.statement_of(written(audit.bodies()[:-1]))}, "another ledger, or another state"),
        ({"heads": heads_of(written([sample.tuning()]), (2,))}, "The ledger has 1 fault"),
        # The first entry names another key, the signatures are not by it, and the heads are about another.
        ({"keys": audit.KEYS.model_copy(update={"ledger": audit.KEYS.auditor})}, "The ledger has 3 faults"),
    ],
)  # fmt: skip
def test_whatever_speaks_against_the_claim_contradicts_it(changes, reason):
    judgement = with_(**changes)
    assert judgement.word == "contradicted"
    assert [text for text in judgement.contradictions if reason in text]


@pytest.mark.parametrize(("change", "told"), [(0.99, True), (1.01, False)])
def test_a_test_is_flagged_by_its_p_value_whatever_its_flag_says(change, told):
    p_value = 1e-3 / 2 / NUMBER_OF_TESTS * change  # half of the false alarms go to the tests, in equal shares
    judgement = with_(empirical=(audit.empirical(tests=(audit.measured(p_value=p_value),)),))
    flags = (
        "Empirical audit 1 flags the trainer: noise.",
        "Empirical audit 1 is filed as if this spoke for the trainer: noise.",
    )
    assert judgement.contradictions == (flags if told else ())


def test_a_flag_counts_though_the_p_value_does_not_show_why():
    judgement = with_(empirical=(audit.empirical(tests=(audit.measured(flagged=True),)),))
    assert judgement.contradictions == ("Empirical audit 1 flags the trainer: noise.",)


def test_a_bound_is_flagged_by_its_counts_whatever_its_flag_says():
    # 600 right guesses of 600 are beyond chance at any claim of these steps; 320 are not.
    shown = fdp_gaussian_epsilon(Guesses(2000, 600, 600), delta=audit.DELTA, significance=0.01)
    assert shown > audit.price_of(2 * audit.STEPS)
    said = {right: audit.bound("fdp_gaussian", shown, guesses=600, correct=right) for right in (600, 320)}
    found = {right: with_(empirical=(audit.empirical(bounds=(bound,)),)) for right, bound in said.items()}
    assert [found[right].word for right in (600, 320)] == ["contradicted", "incomplete"]


def test_counts_that_no_audit_writes_are_a_flag():
    bound = audit.bound("steinke", 9.0, guesses=10, correct=11)
    assert with_(empirical=(audit.empirical(bounds=(bound,)),)).word == "contradicted"


def test_a_flag_of_the_gaussian_bound_says_what_it_presumes():
    judgement = with_(empirical=(audit.empirical(bounds=(audit.bound("fdp_gaussian", 5.0, flagged=True),)),))
    assert "presumes a leak like a Gaussian's" in judgement.contradictions[0]


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ({"sensitivity": 1.5}, "contradicted"),
        ({"leakage": 1e-3}, "contradicted"),
        ({"leakage": math.nan}, "contradicted"),
        ({"leakage": 1e-3, "tolerance": 1.0}, "contradicted"),  # nobody loosens it
        ({"tolerance": 1.0}, "incomplete"),
    ],
)
def test_neighbours_are_flagged_by_their_figures(figures, word):
    neighbours = audit.empirical().neighbours.model_copy(update=figures)
    assert with_(empirical=(audit.empirical(neighbours=neighbours),)).word == word


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reasons": ("weights_differ",)}, "filed as reproduced, and by its own figures it is differing"),
        ({"difference": 2e-3}, "filed as reproduced, and by its own figures it is differing"),
        ({"difference": math.nan}, "filed as reproduced, and by its own figures it is differing"),
        ({"difference": None}, "filed as reproduced, and by its own figures it is not replayable"),
        ({"verdict": "not_replayable", "reasons": ("weights_differ",)}, "filed as not replayable, and by its own"),
        ({"sequence": 99}, "A replay of entry 99, run first, round 1: that is no answered reservation"),
        ({"sequence": 2}, "A replay of entry 2, run first, round 1: that is no answered reservation"),
        ({"job_id": "other"}, "A replay of entry 1, run other, round 1: that is no answered reservation"),
        ({"round_number": 2}, "A replay of entry 1, run first, round 2: that is no answered reservation"),
    ],
)
def test_a_replay_that_its_figures_or_the_ledger_belie_contradicts_and_counts_for_nothing(changes, reason):
    evidence = audit.whole(replays=(audit.replayed(**changes),))[1]
    assert evidence.judgement.word == "contradicted"
    assert [text for text in evidence.judgement.contradictions if reason in text]
    assert not reproduced(evidence)


def test_a_replay_of_an_unanswered_entry_cannot_have_been_reproduced():
    raw = written(audit.bodies()[:-1])
    missing = audit.replayed(3, 2, verdict="not_replayable", reasons=("not_committed",), difference=None)
    for replayed, word in ((audit.replayed(3, 2), "contradicted"), (missing, "incomplete")):
        assert with_(raw=raw, statement=None, replays=(audit.replayed(), replayed)).word == word


def test_a_round_without_noise_may_be_said_to_be_not_replayable():
    raw = written([*audit.bodies(), sample.non_private()])
    plain = audit.replayed(5, 1, job_id="plain", verdict="not_replayable", reasons=("non_private",), difference=None)
    judgements = [with_(raw=raw, replays=(replace(plain, job_id=job),)) for job in ("plain", "first")]
    assert [judgement.word for judgement in judgements] == ["incomplete", "contradicted"]


def test_an_entry_that_was_executed_twice_counts_once_with_its_larger_difference():
    twice = (audit.replayed(difference=2e-4), audit.replayed(difference=1e-5))
    evidence = audit.whole(replays=twice)[1]
    assert (executed(evidence), reproduced(evidence)) == ({1}, {1: twice[0]})


@pytest.mark.parametrize(("beyond", "word"), [(0.001, "contradicted"), (-0.001, "consistent")])
def test_an_attack_that_finds_more_than_is_permitted_contradicts(beyond, word):
    most = permitted_tpr(0.05, 2.4, audit.DELTA)  # at the upper end of its false positive rate
    attack = audit.membership(tpr=0.9, tpr_interval=(most + beyond, 0.99))
    assert with_(membership=(attack,)).word == word


def test_what_an_attack_is_permitted_is_not_believed():
    # e^-2.4 / (1 + e^-2.4) = 0.083: an AUC of 0.917 is permitted, whatever the result says.
    assert with_(membership=(audit.membership(auc=0.97, permitted_auc=0.99),)).word == "contradicted"


def test_a_claim_below_its_cost_contradicts_with_the_count():
    low = audit.price_of(audit.STEPS) - 0.1
    raw = written([audit.reservation(epsilon_run=low, epsilon_lifetime=low, epsilon_private=low, prv=low, pld=low)])
    judgement = audit.evidence_of(raw).judgement
    assert judgement.word == "contradicted"
    assert any("1 reservations claim less than their entries cost" in text for text in judgement.contradictions)


def test_a_statement_below_the_cost_contradicts_though_the_ledger_does_not():
    statement = WHOLE.statement.model_copy(
        update={"lifetime": WHOLE.statement.lifetime.model_copy(update={"epsilon": 0.5, "epsilon_private": 0.5})}
    )
    assert any("says less than the entries cost" in text for text in with_(statement=statement).contradictions)


def test_what_could_not_be_recomputed_is_incomplete_not_consistent():
    body = audit.reservation(dp=sample.patient_privacy(noise_multiplier=0.01))
    evidence = audit.evidence_of(written([body]))
    assert evidence.recomputation is None
    assert any("mechanism_out_of_range" in text for text in evidence.judgement.gaps)


def test_a_rewritten_history_with_the_right_key_is_contradicted_by_the_heads():
    changed = signed_again(RAW, audit.LEDGER, lambda documents: documents.pop(2))
    evidence = audit.evidence_of(changed, heads=heads_of(RAW, (5,)))
    assert evidence.judgement.word == "contradicted"


def test_the_judgement_that_the_evidence_holds_already_changes_nothing():
    lied = WHOLE.model_copy(update={"judgement": with_(empirical=())})
    assert judge(lied) == WHOLE.judgement


def test_bounds_count_only_for_a_run_with_the_same_steps_at_no_smaller_delta():
    at = {delta: (audit.bound("fdp_gaussian", 0.55, delta),) for delta in (1e-2, 1e-4)}
    cases = (
        ({}, (0.42, 0.55)),  # Steinke's is at delta 1e-6
        ({"bounds": at[1e-2]}, (0.55,)),
        ({"bounds": at[1e-4]}, ()),
        ({"steps": 33}, ()),
    )
    for changes, expected in cases:
        run, lifetime = figures_of(audit.whole(empirical=(audit.empirical(**changes),))[1])
        assert (run.bounds, lifetime.bounds) == (expected, expected)


def test_the_figures_are_the_claims_and_the_prices_of_the_same_steps():
    run, lifetime = figures_of(WHOLE)
    both = audit.price_of(2 * audit.STEPS)
    assert (run.claimed, run.recomputed, run.limit) == (both, pytest.approx(both), 4.0)
    assert (lifetime.claimed, lifetime.recomputed, lifetime.limit) == (both, pytest.approx(both), 8.0)


def test_training_without_privacy_makes_the_lifetime_infinite_and_keeps_its_private_part():
    lifetime = lifetime_of(audit.evidence_of(written([*audit.bodies(), sample.non_private()])))
    assert math.isinf(lifetime.worst)
    assert lifetime.claimed_private == audit.price_of(2 * audit.STEPS)


def test_known_noise_makes_the_worst_case_infinite():
    assert math.isinf(lifetime_of(audit.evidence_of(written([audit.reservation(seeded=True)]))).worst)


def test_the_largest_of_claim_statement_and_price_is_relied_on():
    high = 1.9
    raw = written(
        [audit.reservation(epsilon_run=high, epsilon_lifetime=high, epsilon_private=high, prv=high, pld=high)]
    )
    assert relied_on(audit.evidence_of(raw)) == (high, audit.DELTA)
    assert relied_on(audit.evidence_of(raw, statement=audit.statement_of(raw))) == (high, audit.DELTA)


def test_nothing_is_relied_on_where_nothing_was_recomputed():
    body = audit.reservation(dp=sample.patient_privacy(noise_multiplier=0.01))
    assert relied_on(audit.evidence_of(written([body]))) is None


def test_the_evidence_survives_its_text():
    evidence = audit.evidence_of(written([*audit.everything(), sample.non_private()]), empirical=(audit.empirical(),))
    assert read_evidence(evidence_json(evidence)) == evidence
    assert '"lifetime":"infinity"' in evidence_json(evidence)


@given(value=st.floats())
def test_every_measurement_survives_the_text_also_one_that_is_no_number(value):
    evidence = WHOLE.model_copy(update={"replays": (replace(audit.replayed(), difference=value),)})
    text = evidence_json(evidence)
    again = read_evidence(text).replays[0].difference
    assert again == value or (math.isnan(again) and math.isnan(value))
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("spoil", [lambda text: text + " ", lambda text: text.replace('"made"', '"mode"')])
def test_a_text_that_is_spelled_otherwise_is_refused(spoil):
    with pytest.raises(InputError) as caught:
        read_evidence(spoil(evidence_json(WHOLE)))
    assert caught.value.reason in ("evidence_unreadable", "evidence_not_canonical")


@pytest.mark.parametrize("policy", [{"folder": "/home/doe"}, {"jobs": ["C:\\doe"]}, {"a": {"b": "x/y"}}, {"a/b": 1}])
def test_a_policy_that_could_name_a_path_is_refused_without_repeating_it(policy):
    with pytest.raises(InputError) as caught:
        audit.evidence_of(RAW, policy=policy)
    assert caught.value.reason == "policy_names_a_path"
    assert "doe" not in str(caught.value)


def test_the_policy_is_bound_by_its_hash():
    assert WHOLE.policy_sha256 == sample.sha(canonical(WHOLE.policy))


def test_the_software_is_named_with_its_hash_and_its_libraries():
    assert software_versions().keys() == {"multimix", "python", "torch", "numpy", "opacus", "dp-accounting"}
    assert len(software_versions()["multimix"].partition("+")[2]) == 16


def test_configuration_and_events_are_those_of_the_entries():
    evidence = audit.evidence_of(written([*audit.everything(), sample.non_private(steps=10)]))
    first, plain = evidence.runs
    assert (first.job_id, first.rounds, first.reservations, first.answered, first.steps) == ("first", 2, 2, 2, 32)
    assert (first.dp, first.code, first.delta) == ((sample.patient_privacy(),), (audit.CODE,), (audit.DELTA,))
    assert (plain.job_id, plain.non_private_trainings, plain.non_private_steps, plain.dp) == ("plain", 1, 10, ())
    kinds = [entries[0].body.kind for entries in (evidence.refusals, evidence.evaluations, evidence.tuning)]
    assert kinds == ["refusal", "evaluation", "tuning"]


def test_a_line_that_cannot_be_read_stops_nothing():
    lines = RAW.splitlines(keepends=True)
    evidence = audit.evidence_of(b"".join([*lines[:2], b"nonsense\n", *lines[2:]]))
    assert evidence.judgement.word == "contradicted"
    assert evidence.recomputation_error == "line_unreadable"


def test_bytes_signed_by_another_key_are_contradicted():
    assert audit.evidence_of(written(audit.bodies(), OTHER)).judgement.word == "contradicted"
