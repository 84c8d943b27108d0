"""Epsilon from a ledger's events alone, against the trainer's accountant, formulas and claims that are wrong."""

import ast
import json
import math
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from multimix.audit import recompute as module
from multimix.audit.recompute import RecomputeError, main, recompute
from multimix.privacy.accountant import Mechanism, price
from multimix.privacy.chain import seal
from tests.privacy import sample_ledger as sample

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
SCRIPT = Path(module.__file__)
DELTA = 1e-3  # of the sample ledger


def lines(*bodies):
    return [seal(entry, KEY).line.encode() for entry in sample.ledger(bodies)]


def reservation(job="first", round_number=1, *, noise=1.0, rate=0.064, run=1.0, life=1.0, private=None, **changes):
    values = {
        "dp": sample.patient_privacy(noise_multiplier=noise, sampling_rate=rate),
        "epsilon_run": run,
        "epsilon_lifetime": life,
        "epsilon_private": private if private is not None else (life if life is not None else 1.0),
        "limit_run": 99.0,
        "limit_lifetime": 99.0,
    }
    return sample.reservation(job, round_number, **(values | changes))


@cache
def exactly(history, delta=DELTA):
    """By the accountant object of dp-accounting on one fine mesh: another way of calling than the module's."""
    accountant = PLDAccountant(value_discretization_interval=2e-3)
    for (noise, rate), steps in history:
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    return accountant.get_epsilon(delta)


def one_run(many, steps=4, **changes):
    """Rounds of one run that claim what they cost; of a long run between prices, since epsilon squared is nearly linear."""
    priced = sorted(
        {*range(1, min(many, 10) + 1), *(round(10 * 1.2**n) for n in range(40) if 10 * 1.2**n < many), many}
    )
    squares = [exactly((((1.0, 0.064), steps * number),)) ** 2 for number in priced]
    claims = np.sqrt(np.interp(range(1, many + 1), priced, squares)).tolist()
    return [
        reservation(round_number=number, steps=steps, run=claim, life=claim, **changes)
        for number, claim in enumerate(claims, start=1)
    ]


def changed(body, **changes):
    return body.model_copy(update=changes)


@pytest.mark.parametrize("noise", [0.8, 1.5, 20.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.0128, 1000), (0.064, 16), (0.5, 30), (1.0, 3)])
def test_a_run_costs_what_the_trainers_accountant_says_within_two_hundredths_and_a_percent(noise, rate, steps):
    trainer = price({Mechanism(noise, rate): steps}, delta=DELTA).epsilon

    auditor = recompute(lines(reservation(noise=noise, rate=rate, steps=steps))).lifetime

    assert auditor == pytest.approx(trainer, abs=0.02, rel=0.01)


def test_a_mixed_lifetime_costs_what_the_trainers_accountant_says():
    history = {Mechanism(1.0, 0.064): 48, Mechanism(2.0, 0.1): 200, Mechanism(0.7, 0.005): 500}
    bodies = [
        reservation(f"job-{number}", noise=mechanism.noise_multiplier, rate=mechanism.sampling_rate, steps=steps)
        for number, (mechanism, steps) in enumerate(history.items())
    ]

    found = recompute(lines(*bodies), delta=1e-5)

    assert found.private == pytest.approx(price(history, delta=1e-5).epsilon, abs=0.02, rel=0.01)
    assert found.runs["job-1"] == pytest.approx(
        price({Mechanism(2.0, 0.1): 200}, delta=1e-5).epsilon, abs=0.02, rel=0.01
    )


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_one_plain_gaussian_step_costs_what_balle_and_wang_derive_and_not_less(noise):
    def excess(epsilon):  # arXiv:1805.06530, theorem 8, sensitivity 1
        shift, spread = 1 / (2 * noise), epsilon * noise
        return norm.cdf(shift - spread) - math.exp(epsilon) * norm.cdf(-shift - spread) - DELTA

    analytic = brentq(excess, 0, 60)

    found = recompute(lines(reservation(noise=noise, rate=1.0, steps=1))).lifetime

    assert analytic <= found <= analytic + 0.005 + 0.005 * analytic


def test_an_honest_ledger_agrees_and_every_reservation_counts_committed_or_not():
    rounds = one_run(20)
    entries = [rounds[0], sample.commit(1), *rounds[1:]]

    found = recompute(lines(*entries))

    assert found.agrees
    assert found.notes == ()
    assert [row.entry.sequence for row in found.rows] == [1, *range(3, 22)]
    assert found.lifetime == pytest.approx(exactly((((1.0, 0.064), 80),)), abs=0.01)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_verdicts_and_brackets_are_those_of_pricing_every_prefix(seed):
    draw = random.Random(seed)
    mechanisms = [(1.0, 0.1), (1.3, 0.05), (0.9, 0.2)]
    bodies, expected, life, of_run = [], [], {}, {}
    for number in range(14):
        job, mechanism, steps = draw.choice("abc"), draw.choice(mechanisms), draw.randint(4, 30)
        life[mechanism] = life.get(mechanism, 0) + steps
        mine = of_run.setdefault(job, {})
        mine[mechanism] = mine.get(mechanism, 0) + steps
        truth = exactly(tuple(mine.items())), exactly(tuple(life.items()))
        factor = draw.choice([1.0, 1.0, 1.005, 0.8, 1.5])  # all far from the tolerance, since no epsilon is below 0.2
        verdict = {0.8: "understated", 1.5: "overstated"}.get(factor, "agrees")
        run, lifetime = (truth[0] * factor, truth[1]) if draw.random() < 0.5 else (truth[0], truth[1] * factor)
        bodies.append(
            reservation(job, number, noise=mechanism[0], rate=mechanism[1], steps=steps, run=run, life=lifetime)
        )
        expected.append((verdict, *truth))

    found = recompute(lines(*bodies))

    assert [row.verdict for row in found.rows] == [verdict for verdict, _, _ in expected]
    for row, (_, run, lifetime) in zip(found.rows, expected, strict=True):
        assert row.run.low - 0.01 - 0.01 * run <= run <= row.run.high + 0.01
        assert row.lifetime.low - 0.01 - 0.01 * lifetime <= lifetime <= row.lifetime.high + 0.01


def test_a_smaller_rate_in_an_entry_than_it_trained_with_shows_as_a_claim_above_the_events():
    bodies = one_run(10)
    smaller = [changed(body, dp=sample.patient_privacy(sampling_rate=0.03)) for body in bodies]

    found = recompute(lines(*smaller))

    assert {row.verdict for row in found.rows[2:]} == {"overstated"}


def test_a_smaller_claim_than_the_events_cost_is_a_disagreement():
    claims = [exactly((((1.0, 0.03), 4 * (number + 1)),)) for number in range(10)]
    bodies = [reservation(round_number=n + 1, steps=4, run=claim, life=claim) for n, claim in enumerate(claims)]

    found = recompute(lines(*bodies))

    assert not found.agrees
    assert found.rows[-1].verdict == "understated"


@pytest.mark.slow
def test_one_understated_entry_in_the_middle_of_two_thousand_is_found():
    bodies = one_run(2000, steps=1)
    bodies[1234] = changed(bodies[1234], epsilon_private=bodies[1234].epsilon_private * 0.95)

    found = recompute(lines(*bodies))

    assert [row.entry.round for row in found.rows if row.verdict != "agrees"] == [1235]
    assert found.notes == ("understated: 1",)


def test_after_training_without_privacy_lifetime_and_that_run_are_infinite_and_the_rest_is_still_compared():
    first, second, third = one_run(3)
    before = changed(first, epsilon_lifetime=None, epsilon_run=first.epsilon_run)
    after = changed(second, epsilon_lifetime=None)
    exposed_run = changed(third, epsilon_lifetime=None, binding=sample.binding("plain", 2), epsilon_run=1.0)

    found = recompute(lines(before, sample.non_private("plain"), after, exposed_run))

    assert [row.verdict for row in found.rows] == ["overstated", "agrees", "understated"]
    assert [row.lifetime.low for row in found.rows[1:]] == [math.inf, math.inf]
    assert found.rows[2].run.low == found.runs["plain"] == found.lifetime == math.inf
    assert found.private == pytest.approx(exactly((((1.0, 0.064), 12),)), abs=0.01)


def test_a_finite_lifetime_claimed_after_training_without_privacy_is_understated():
    found = recompute(lines(sample.non_private(), *one_run(2)))

    assert [row.verdict for row in found.rows] == ["understated", "understated"]


def test_seeded_reservations_are_priced_and_named():
    found = recompute(lines(*one_run(2, seeded=True)))

    assert found.notes == ("seeded: 2",)
    assert found.lifetime > 0.2
    assert found.agrees


def test_a_claim_above_its_own_limit_is_a_disagreement():
    body = one_run(1)[0]

    found = recompute(lines(changed(body, limit_run=body.epsilon_run - 0.01)))

    assert not found.agrees
    assert found.notes == ("claim_above_limit: 1",)


def test_a_delta_that_rises_is_a_disagreement_and_one_that_falls_a_note():
    def at(*deltas):
        claims = [exactly((((1.0, 0.064), 16 * (n + 1)),), delta) for n, delta in enumerate(deltas)]
        return recompute(
            lines(
                *(
                    reservation(round_number=n + 1, delta=delta, run=claim, life=claim)
                    for n, (delta, claim) in enumerate(zip(deltas, claims, strict=True))
                )
            )
        )

    raised, lowered = at(1e-5, 1e-3), at(1e-3, 1e-5)

    assert (raised.agrees, raised.notes) == (False, ("delta_raised: 1",))
    assert (lowered.agrees, lowered.notes) == (True, ("delta_lowered: 1",))
    assert raised.delta == lowered.delta == 1e-5
    assert raised.lifetime == pytest.approx(exactly((((1.0, 0.064), 32),), 1e-5), abs=0.01, rel=0.005)


def test_what_is_far_above_any_protection_is_infinite_and_a_claim_below_understated():
    # mu = sqrt(1000) / 0.1 = 316, so epsilon is about mu^2 / 2 = 50,000
    found = recompute(lines(reservation(noise=0.1, rate=1.0, steps=1000, run=50.0, life=50.0)))

    assert found.lifetime == math.inf
    assert found.rows[0].verdict == "understated"
    json.dumps(found.as_dict(), allow_nan=False)


class Square:
    """An accountant that is a formula: epsilon is sqrt(steps) / 20, too high by `coarse` on the first mesh."""

    def __init__(self, coarse=1.0):
        self.asked, self.coarse = 0, coarse

    def epsilon(self, history, delta, halvings=0):
        self.asked += 1
        return truth(history) * (1 if halvings else self.coarse)


class Steps:
    def history(self, position):
        return position


def truth(steps):
    return math.sqrt(steps) / 20


def settled(claims, accountant=None):
    curve = module._Curve(accountant or Square(), Steps(), DELTA)
    curve.claims = set(claims)
    curve.settle()
    return curve


FACTORS = st.one_of(st.just(1.0), st.floats(0.5, 2.0), st.sampled_from([0.98, 0.985, 0.99, 1.01, 1.03]))


@given(st.dictionaries(st.integers(1, 40_000), FACTORS, min_size=1, max_size=60))
def test_understated_claims_are_exactly_those_below_their_own_price_less_the_tolerance(factors):
    claims = {steps: truth(steps) * factor for steps, factor in factors.items()}

    curve = settled(claims.items())

    for steps, claim in claims.items():
        understated = claim + 0.02 + 0.01 * claim < truth(steps)
        overstated = claim - 0.06 - 0.03 * claim > truth(steps)
        expected = "understated" if understated else "overstated" if overstated else "agrees"
        assert curve.verdicts[steps, claim] == expected
        assert curve.bracket(steps).low <= truth(steps) <= curve.bracket(steps).high


def test_few_prices_decide_many_honest_claims():
    # Prices lie 0.02 + 1 % apart at least: log(1 + 0.01 * 10 / 0.02) / 0.01 = 180 of them up to epsilon 10.
    accountant = Square()

    curve = settled([(steps, truth(steps)) for steps in range(1, 40_001)], accountant)

    assert set(curve.verdicts.values()) == {"agrees"}
    assert accountant.asked <= 185


def test_claims_that_jump_cost_few_prices_too():
    accountant = Square()

    curve = settled([(n, truth(n) * (0.5 if n % 2 else 1.0)) for n in range(100, 20_000)], accountant)

    assert {curve.verdicts[n, truth(n) * 0.5] for n in range(101, 20_000, 2)} == {"understated"}
    assert accountant.asked < 1200


def test_claims_that_would_each_need_a_price_end_undecided():
    accountant = Square()
    at_the_edge = [(n, (truth(n) - 0.02) / 1.01 + 1e-9) for n in range(1000, 11_000)]

    curve = settled(at_the_edge, accountant)

    assert "understated" not in curve.verdicts.values()
    assert "undecided" in curve.verdicts.values()
    assert accountant.asked < 2 * module._MOST_PRICES


def test_nobody_is_accused_because_of_a_coarse_mesh():
    curve = settled([(n, truth(n)) for n in range(1000, 5000)], Square(coarse=1.05))

    assert set(curve.verdicts.values()) == {"agrees"}


def edited(raw, **fields):
    document = json.loads(json.loads(raw)["document"])
    document["body"] |= fields
    return json.dumps({"document": json.dumps(document), "signature": "AA=="}).encode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: [], "ledger_empty"),
        (lambda raw: raw[1:], "entry_out_of_order"),
        (lambda raw: [raw[0], raw[0]], "entry_out_of_order"),
        (lambda raw: [raw[0], b"patient Smith"], "line_unreadable"),
        (lambda raw: [raw[0], edited(raw[1], kind="surprise")], "entry_unknown"),
        (lambda raw: [raw[0], edited(raw[1], steps=0)], "entry_invalid"),
        (lambda raw: [raw[0], edited(raw[1], steps=True)], "entry_invalid"),
        (lambda raw: [raw[0], edited(raw[1], epsilon_run=math.nan)], "entry_invalid"),
        (lambda raw: [raw[0], edited(raw[1], binding={"job_id": "Smith, John", "round": 1})], "entry_invalid"),
        (lambda raw: [raw[0], edited(raw[1], steps=10**9)], "steps_too_many"),
        (lambda raw: [raw[0], edited(raw[1], delta=0.0)], "delta_out_of_range"),
        (
            lambda raw: [raw[0], edited(raw[1], dp={"mechanism": "laplace"})],
            "mechanism_unknown",
        ),
        (
            lambda raw: [
                raw[0],
                edited(
                    raw[1],
                    dp={"mechanism": "poisson_subsampled_gaussian", "noise_multiplier": 0.01, "sampling_rate": 0.1},
                ),
            ],
            "mechanism_out_of_range",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_a_reason_and_never_quoted(change, reason):
    with pytest.raises(RecomputeError) as caught:
        recompute(change(lines(reservation())))

    assert caught.value.reason == reason
    assert "Smith" not in str(caught.value)


def stored(folder, *bodies):
    path = folder / "ledger.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines(*bodies)))
    return path


def test_the_exit_code_says_agrees_or_not_or_unreadable(tmp_path, capsys):
    honest = one_run(2)
    lie = changed(honest[1], epsilon_lifetime=0.1)

    codes = [main([str(stored(tmp_path, honest[0], body))]) for body in (honest[1], lie)]
    codes.append(main([str(tmp_path / "Smith")]))

    assert codes == [0, 3, 2]
    shown = capsys.readouterr()
    assert "AGREES" in shown.out
    assert "DOES NOT AGREE" in shown.out
    assert shown.err == "could not recompute: ledger_unreadable\n"


def test_a_last_line_cut_by_a_crash_never_counted(tmp_path, capsys):
    path = stored(tmp_path, *one_run(2))
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:50])

    assert main([str(path)]) == 0
    assert capsys.readouterr().out.count(" agrees") == 2


def test_the_file_imports_the_standard_library_and_dp_accounting_only():
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"dp_accounting"}


def test_it_runs_where_nothing_of_multimix_is_installed(tmp_path):
    path = stored(tmp_path, *one_run(2))
    alone = tmp_path / "alone.py"
    alone.write_bytes(SCRIPT.read_bytes())
    blocked = (
        "import runpy, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('multimix', 'client', 'server', 'sim', 'tests'): raise SystemExit(99)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = ['alone.py', {str(path)!r}, '--json']\n"
        f"runpy.run_path({str(alone)!r}, run_name='__main__')\n"
    )

    ran = subprocess.run([sys.executable, "-c", blocked], cwd=tmp_path, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["site"], found["agrees"], len(found["rows"])) == ("north", True, 2)
