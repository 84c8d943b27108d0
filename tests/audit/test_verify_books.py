"""Ledgers whose hashes and signatures all fit, and whose entries say what the trainer never writes."""

import base64
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.audit.verification.verify import verify_ledger
from multimix.contract.privacy import EMPTY_HEAD, chained
from multimix.contract.signing import public_text
from multimix.privacy.entries import Officer, officer_text
from tests.audit.ledger_attacks import LEDGER, OTHER, POPULATION, SITE, big_ledger, sealed_of, written
from tests.privacy import sample_ledger as sample

KEY, OFFICER_KEY = public_text(LEDGER), public_text(OTHER)


def findings(bodies, *, officer_key=None):
    raw = written(bodies)
    return verify_ledger(raw, key=KEY, heads=None, coordinator_key=None, officer_key=officer_key).findings


def faults(bodies, **given):
    return [(each.reason, each.entry) for each in findings(bodies, **given) if each.severity == "violation"]


def notices(bodies, **given):
    told = [(each.reason, each.entry) for each in findings(bodies, **given) if each.severity == "notice"]
    return [each for each in told if each[0] not in {"truncation_not_checkable", "uncommitted"}]


def reserved(round_number=1, epsilon=1.0, *, job="first", **changes):
    claims = dict.fromkeys(("epsilon_run", "epsilon_lifetime", "epsilon_private", "prv", "pld"), epsilon)
    return sample.reservation(job, round_number, **(claims | changes))


def rebound(body, **changes):
    return body.model_copy(update={"binding": body.binding.model_copy(update=changes)})


def test_rounds_that_were_answered_one_by_one_are_no_fault():
    bodies = [reserved(1), sample.commit(1), reserved(2, 1.5), sample.commit(3)]
    assert faults(bodies) == []
    assert notices(bodies) == []


def test_reservations_without_commits_are_listed():
    raw = written([reserved(1), reserved(2, 1.5), sample.commit(1), reserved(3, 1.7)])
    found = verify_ledger(raw, key=KEY, heads=None, coordinator_key=None, officer_key=None)
    assert found.open_reservations == (2, 4)
    (told,) = (each for each in found.notices if each.reason == "uncommitted")
    assert (told.entry, told.detail[:2]) == (2, "2 ")


def test_a_commit_of_no_reservation_is_told():
    assert faults([sample.commit(7)]) == [("commit_unknown", 1)]
    assert faults([sample.tuning(), sample.commit(1)]) == [("commit_unknown", 2)]
    assert faults([sample.commit(2), reserved(1)]) == [("commit_unknown", 1)]


def test_a_second_commit_of_a_reservation_is_told():
    assert faults([reserved(1), sample.commit(1), sample.commit(1)]) == [("commit_again", 3)]


def test_two_answers_to_one_plan_on_the_same_weights_are_told():
    other_data = rebound(reserved(1, 1.5, commitment=sample.sha("fresh")), data_fingerprint="gen-2-1")
    assert faults([reserved(1), other_data]) == []  # a crash, then new images: reserved anew, and answered once
    assert faults([reserved(1), other_data, sample.commit(1), sample.commit(2)]) == [("answered_twice", 4)]


def test_a_reservation_for_what_was_answered_is_told():
    other_data = rebound(reserved(1, 1.5, commitment=sample.sha("fresh")), data_fingerprint="gen-2-1")
    assert faults([reserved(1), sample.commit(1), other_data]) == [("reserved_after_answer", 3)]


def test_the_same_order_reserved_twice_is_told():
    assert faults([reserved(1), reserved(1, 1.5, commitment=sample.sha("fresh"))]) == [("reserved_twice", 2)]


def test_a_secret_used_for_two_reservations_is_told_at_the_second():
    bodies = [reserved(1), reserved(2, 1.5, commitment=reserved(1).commitment)]
    assert faults(bodies) == [("secret_reused", 2)]


@pytest.mark.parametrize(("first", "second", "told"), [(True, True, []), (True, False, [2]), (False, True, [2])])
def test_a_secret_may_be_used_twice_only_where_both_say_that_it_is_seeded(first, second, told):
    again = reserved(2, 1.5, commitment=reserved(1).commitment, seeded=second)
    assert faults([reserved(1, seeded=first), again]) == [("secret_reused", entry) for entry in told]


def test_noise_from_a_known_seed_is_a_notice_once():
    assert notices([reserved(1), reserved(2, 1.5, seeded=True), reserved(3, 1.6, seeded=True)]) == [("seeded", 2)]


def test_a_second_plan_for_a_round_is_told():
    changed = rebound(reserved(2, 1.6, commitment=sample.sha("fresh")), plan_sha256=sample.sha("another plan"))
    assert faults([reserved(1), reserved(2, 1.5), changed]) == [("plan_changed", 3)]


def test_an_older_round_after_a_newer_one_is_told():
    assert faults([reserved(2), reserved(1, 1.5)]) == [("round_back", 2)]
    assert faults([reserved(2), reserved(1, 1.5, job="other", epsilon_run=1.0)]) == []


def test_training_without_privacy_keeps_to_the_order_of_rounds_too():
    assert faults([sample.non_private("plain", 2), sample.non_private("plain", 1)]) == [("round_back", 2)]


def test_a_plan_that_stands_with_two_rounds_or_weights_is_told():
    moved = rebound(reserved(2, 1.5), plan_sha256=reserved(1).binding.plan_sha256)
    assert faults([reserved(1), moved]) == [("plan_bound_otherwise", 2)]
    swapped = rebound(reserved(1, 1.5, commitment=sample.sha("x")), weights_sha256=sample.sha("others"))
    assert faults([reserved(1), swapped]) == [("plan_bound_otherwise", 2)]


@pytest.mark.parametrize(
    "changes",
    [
        {"dp": sample.patient_privacy(noise_multiplier=1.1)},
        {"dp": sample.patient_privacy(modules=("classifier",), module_weights={"classifier": 0.2})},
        {"steps": 8, "total_steps": 80},
    ],
)
def test_privacy_changed_inside_a_run_is_told(changes):
    assert faults([reserved(1), reserved(2, 1.5, **changes)]) == [("dp_changed", 2)]


@pytest.mark.parametrize("round_number", [0, 11])
def test_a_round_beyond_the_run_is_told(round_number):
    assert faults([reserved(round_number)]) == [("round_beyond", 1)]


def test_more_reservations_than_rounds_are_a_notice_once():
    dp = sample.patient_privacy(rounds=2)
    orders = [
        rebound(reserved(1, commitment=sample.sha(f"{n}"), dp=dp, total_steps=32), data_fingerprint=f"gen-{n}-1")
        for n in range(4)
    ]
    assert faults(orders) == []
    assert notices(orders) == [("more_than_rounds", 3)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"total_steps": 161}, "total_steps_wrong"),
        ({"epsilon": 3.9, "dp": sample.patient_privacy(epsilon=3.8)}, "plan_epsilon_exceeded"),
        ({"dp": sample.patient_privacy(epsilon=4.1)}, "plan_beyond_limits"),
        ({"dp": sample.patient_privacy(delta=2e-3)}, "plan_beyond_limits"),
        ({"dp": sample.patient_privacy(mechanism="shuffled")}, "dp_mechanism_unknown"),
        ({"dp": sample.patient_privacy(noise_multiplier=0.0)}, "dp_parameters"),
        ({"dp": sample.patient_privacy(noise_multiplier=-1.0)}, "dp_parameters"),
        ({"dp": sample.patient_privacy(clip_norm=0.0)}, "dp_parameters"),
        ({"dp": sample.patient_privacy(sampling_rate=1.1)}, "dp_parameters"),
        ({"dp": sample.patient_privacy(sampling_rate=0.0)}, "dp_parameters"),
        ({"epsilon": 2.0, "limit_lifetime": 1.9}, "limit_lifetime_exceeded"),
        ({"epsilon_run": 4.1, "epsilon": 5.0, "dp": sample.patient_privacy(epsilon=4.0)}, "limit_run_exceeded"),
        ({"prv": 1.1}, "claim_inconsistent"),
        ({"epsilon_lifetime": 0.9}, "claim_inconsistent"),
        ({"epsilon_run": 1.04}, "claim_inconsistent"),
        ({"epsilon": -0.1}, "claim_inconsistent"),
        ({"pld": 0.96}, "accountants_disagree"),
    ],
)
def test_a_reservation_that_the_trainer_refuses_is_told(changes, reason):
    assert (reason, 1) in faults([reserved(**changes)])


def test_claims_at_their_limits_are_no_fault():
    assert faults([reserved(epsilon=4.0, limit_lifetime=4.0, pld=3.95)]) == []


def test_the_lifetimes_claim_never_falls():
    assert faults([reserved(1, 2.0, epsilon_run=1.0), reserved(1, 1.9, epsilon_run=0.5, job="other")]) == [
        ("epsilon_falls", 2)
    ]


def test_the_runs_claim_never_falls():
    assert faults([reserved(1, 2.0), reserved(2, 2.5, epsilon_run=1.9)]) == [("epsilon_falls", 2)]


def test_a_fall_within_the_accountants_mesh_is_a_notice():
    bodies = [reserved(1, 2.0), reserved(2, 1.97)]  # 0.02 + 1 % of 2.0 is 0.04
    assert faults(bodies) == []
    assert notices(bodies) == [("epsilon_falls", 2), ("epsilon_falls", 2)]  # of the run, and of the lifetime


def test_a_claim_after_two_small_falls_is_held_against_the_highest():
    assert faults([reserved(1, 2.0), reserved(2, 1.97), reserved(3, 1.94)]) == [
        ("epsilon_falls", 3),
        ("epsilon_falls", 3),
    ]


def test_claims_are_compared_at_the_same_delta_only_and_the_change_is_a_notice():
    bodies = [reserved(1, 2.0), reserved(2, 1.5, delta=2e-3), reserved(3, 1.6), reserved(4, 2.1)]
    assert faults(bodies) == [("epsilon_falls", 3), ("epsilon_falls", 3)]
    assert notices(bodies) == [("delta_changed", 2), ("delta_changed", 3)]


def test_limits_that_change_are_a_notice():
    assert notices(
        [reserved(1), reserved(2, 1.5, limit_run=5.0), reserved(3, 1.6, limit_lifetime=9.0, limit_run=5.0)]
    ) == [
        ("limit_changed", 2),
        ("limit_changed", 3),
    ]


def test_claims_of_merged_mechanisms_may_fall_with_a_notice():
    jobs = [
        reserved(
            1, 2.0 + n / 100, job=f"job-{n}", epsilon_run=1.0, dp=sample.patient_privacy(noise_multiplier=1 + n / 10)
        )
        for n in range(11)
    ]
    last = reserved(1, 1.0, job="last", dp=sample.patient_privacy(noise_multiplier=9.0))
    assert faults([*jobs[:9], last]) == [("epsilon_falls", 10)]
    assert faults([*jobs, last]) == []
    assert ("epsilon_falls", 12) in notices([*jobs, last])


def test_a_finite_lifetime_after_training_without_privacy_is_told():
    bodies = [sample.non_private(), reserved(1, epsilon_lifetime=None), reserved(2, 1.5)]
    assert faults(bodies) == [("finite_after_non_private", 3)]
    assert ("non_private", 1) in notices(bodies)


def test_an_infinite_lifetime_without_a_reason_is_told():
    assert faults([reserved(1, epsilon_lifetime=None)]) == [("non_private_missing", 1)]


def decided(action, number, bodies, key=OTHER, *, head=None):
    """An officer's decision as entry `number`, after these bodies."""
    here = chained(EMPTY_HEAD, [sealed.digest for sealed in sealed_of(written(bodies))])
    signed = officer_text(SITE, POPULATION, head or here, action, "agreed")
    signature = base64.b64encode(key.sign(signed.encode())).decode()
    assert number == len(bodies) + 1
    return Officer(action=action, text="agreed", officer_key=public_text(key), signature=signature)


def test_what_the_officer_signed_is_allowed():
    allowed = [decided("allow_non_private", 1, [])]
    exposed = [*allowed, sample.non_private()]
    again = [*exposed, decided("private_after_non_private", 3, exposed), reserved(1, epsilon_lifetime=None)]
    assert faults(again, officer_key=OFFICER_KEY) == []


def test_training_without_privacy_that_no_officer_allowed_before_is_told():
    late = [sample.non_private()]
    bodies = [*late, decided("allow_non_private", 2, late)]
    assert faults(bodies, officer_key=OFFICER_KEY) == [("non_private_not_signed", 1)]


def test_private_training_after_exposure_needs_the_officer_each_time():
    bodies = [decided("allow_non_private", 1, []), sample.non_private()]
    bodies.append(decided("private_after_non_private", 3, bodies))
    bodies += [sample.non_private(round_number=2), reserved(1, epsilon_lifetime=None)]
    assert faults(bodies, officer_key=OFFICER_KEY) == [("population_exposed", 5)]


def test_a_decision_signed_by_another_decides_nothing():
    bodies = [decided("allow_non_private", 1, [], LEDGER), sample.non_private()]
    assert faults(bodies, officer_key=OFFICER_KEY) == [("officer_unknown", 1), ("non_private_not_signed", 2)]


def test_a_decision_lifted_from_another_place_is_told_with_or_without_the_officers_key():
    bodies = [sample.tuning(), decided("allow_non_private", 2, [sample.tuning()], head=EMPTY_HEAD)]
    assert faults(bodies, officer_key=OFFICER_KEY) == [("officer_signature", 2)]
    assert faults(bodies) == [("officer_signature", 2)]


def test_without_the_officers_key_it_is_said_that_decisions_were_not_checked():
    bodies = [sample.non_private()]
    assert faults(bodies) == []
    assert ("officer_not_checked", 1) in notices(bodies)


@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=8))
def test_rising_claims_are_never_a_fault_and_a_clear_fall_always_is(epsilons):
    rising = sorted(epsilons)
    bodies = [reserved(number, epsilon) for number, epsilon in enumerate(rising, 1)]
    assert faults(bodies) == []
    fallen = reserved(len(rising) + 1, max(0.0, 0.9 * rising[-1] - 0.1))
    told = ("epsilon_falls", len(rising) + 1) in faults([*bodies, fallen])
    assert told == (rising[-1] - fallen.epsilon_run > 0.02 + 0.01 * rising[-1])


def test_a_generated_ledger_of_twenty_runs_has_no_fault():
    raw, key = big_ledger(1_000)
    found = verify_ledger(raw, key=key, heads=None, coordinator_key=None, officer_key=None)
    assert (found.violations, found.entries) == ((), 1_000)
    assert found.counts["reservation"] == math.ceil(999 / 2)
