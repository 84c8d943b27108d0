"""A round under site-level privacy: nothing that is published depends on what a site sent, but the noised weights."""

import json

import numpy as np
import pytest
from fake_sites import (
    PLAN_KEY,
    FakeGrid,
    FakeSite,
    card,
    garbled,
    node_error,
    not_a_number,
    refuses,
    sends,
    sends_weights,
    silent,
    tiny_run,
    unreadable_arrays,
    weights,
    without_arrays,
)

from multimix.contract.messages import Teachers
from multimix.privacy.central import SiteLevel
from server.federation import Federation
from server.results import SiteRound
from server.rounds import Orders, train_round

# Noise far below a float's last bit of these numbers, so that what remains is clipping and division.
QUIET = SiteLevel(noise_multiplier=1e-12, clip_norm=1.0, sites=3, delta=0.1, rounds=3, epsilon=1.0)
LOUD = SiteLevel(noise_multiplier=1.0, clip_norm=1.0, sites=3, delta=0.1, rounds=3, epsilon=1.0)
ANSWERED = SiteRound(state="accepted", steps=1)


def _round(sites, settings=LOUD, **config):
    nodes = {site.card.site: node for node, site in enumerate(sites, start=2)}
    federation = Federation(FakeGrid(sites), nodes=nodes, cards={site.card.site: site.card for site in sites})
    orders = Orders(
        job_id="job", config=tiny_run(**config), key=PLAN_KEY, mask_convention="behind_heart", site_level=settings
    )
    return train_round(federation, orders, weights(1.0), 1, sorted(nodes))


def _sites(**misbehaving):
    return [FakeSite(card(name), misbehaves={1: misbehaving[name]} if name in misbehaving else {}) for name in "abc"]


def _public(record):
    """The record of a round without its times."""
    return record.model_dump(exclude={"seconds", "parts"})


HUGE = sends_weights(lambda sent: {name: value + np.float32(1e30) for name, value in sent.items()})
ODD = [
    HUGE,
    sends_weights(not_a_number),
    sends_weights(lambda sent: {name: value[:1] for name, value in sent.items()}),
    sends_weights(lambda sent: sent | {"encoder.more": sent["encoder.a"]}),
    sends(weights_sha256="0" * 64),
    sends(plan_sha256="0" * 64),
    sends(losses={"total": 99.0}, steps=77, seconds={"total": 5.0}),
    sends(teachers={"encoder": Teachers(labelled=1)}),
    garbled,
    without_arrays,
    unreadable_arrays,
    refuses("training_diverged"),
    refuses("no_training_images"),
    refuses("internal_error"),
    refuses("not a reason"),
]


@pytest.mark.parametrize("misbehaviour", ODD)
def test_the_record_of_a_round_is_the_same_whatever_a_site_sends(misbehaviour):
    odd, honest = _round(_sites(b=misbehaviour)), _round(_sites())
    assert _public(odd.record) == _public(honest.record)
    assert odd.record.sites["b"] == ANSWERED
    assert odd.quorum_met


def test_the_noised_average_is_published_even_if_no_answer_can_be_used():
    broken = _round(_sites(a=garbled, b=refuses("training_diverged"), c=sends_weights(not_a_number)))
    assert broken.quorum_met
    assert _public(broken.record) == _public(_round(_sites()).record)
    noise = np.concatenate([(value - 1.0).ravel() for value in broken.weights.values()])
    assert (noise != 0).all()


def test_an_update_is_cut_to_the_clip_norm_and_never_left_out_for_its_size():
    moved = _round(_sites(b=HUGE, a=silent, c=silent), QUIET, quorum=1).weights
    length = np.sqrt(sum(np.square(value.astype(float) - 1.0).sum() for value in moved.values()))
    assert length == pytest.approx(QUIET.clip_norm / QUIET.sites, rel=1e-5)


@pytest.mark.parametrize("odd", [sends_weights(not_a_number), garbled, refuses("internal_error"), silent])
def test_an_answer_that_cannot_be_used_counts_as_zero_of_the_same_number_of_sites(odd):
    sites = _sites(b=odd)
    moved = _round(sites, QUIET).weights
    expected = 1.0 + (sites[0].step(1) + sites[2].step(1)) / 3
    for value in moved.values():
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("misbehaviour", "state", "reason"),
    [
        (silent, "absent", "absent"),
        (node_error, "absent", "site_error"),
        (refuses("dp_budget_run"), "refused", "dp_budget_run"),
        (refuses("job_not_approved"), "refused", "job_not_approved"),
        (refuses("ledger_disk_full"), "refused", "ledger_disk_full"),
    ],
)
def test_who_answered_and_what_was_decided_before_any_image_was_read_is_public(misbehaviour, state, reason):
    outcome = _round(_sites(b=misbehaviour))
    assert outcome.record.sites["b"] == SiteRound(state=state, reason=reason)
    assert outcome.record.module_shares == _round(_sites()).record.module_shares


def test_the_quorum_counts_the_sites_that_answered():
    assert _round(_sites(a=garbled, b=garbled, c=silent), quorum=2).quorum_met
    lost = _round(_sites(a=garbled, b=refuses("dp_required"), c=silent), quorum=2)
    assert not lost.quorum_met
    assert {name: value.tobytes() for name, value in lost.weights.items()} == {
        name: value.tobytes() for name, value in weights(1.0).items()
    }


def test_every_site_has_the_same_share_of_every_module():
    shares = _round(_sites(b=silent)).record.module_shares
    assert shares == dict.fromkeys(("encoder", "classifier", "decoder"), dict.fromkeys("abc", pytest.approx(1 / 3)))


def test_the_plan_asks_for_no_validation():
    orders = Orders(job_id="job", config=tiny_run(), key=PLAN_KEY, mask_convention=None, site_level=LOUD)
    assert json.loads(orders.train(1, weights(), "a").document)["evaluate_on"] == "none"
