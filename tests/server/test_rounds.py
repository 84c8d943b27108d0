import numpy as np
import pytest
from fake_sites import (
    PLAN_KEY,
    FakeGrid,
    FakeSite,
    card,
    dice_of,
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
from flwr.app import ConfigRecord, Message

from multimix.contract.messages import Picture, Teachers, weights_sha256
from multimix.contract.records import evaluated_reply
from multimix.contract.signing import verified
from multimix.contract.site import Evaluated
from multimix.errors import InputError
from server.federation import Federation
from server.rounds import Orders, check_federation, evaluate_everywhere, quorum_of, train_round


def _federation(*sites, away=()):
    nodes = {site.card.site: node for node, site in enumerate(sites, start=2)}
    cards = {site.card.site: site.card for site in sites}
    return Federation(FakeGrid(sites, away=set(away)), nodes=nodes, cards=cards)


def _orders(**config):
    return Orders(job_id="job", config=tiny_run(**config), key=PLAN_KEY, mask_convention="behind_heart")


def _sites(names="abc", **misbehaving):
    return [FakeSite(card(n), misbehaves={1: misbehaving[n]} if n in misbehaving else {}) for n in names]


def _round(sites, number=1, *, known=None, away=(), **config):
    names = known or sorted(site.card.site for site in sites)
    return train_round(_federation(*sites, away=away), _orders(**config), weights(1.0), number, names)


def test_a_round_averages_what_every_site_sends():
    sites = _sites("ab")
    outcome = _round(sites)
    expected = 1.0 + (sites[0].step(1) + sites[1].step(1)) / 2  # equal numbers of patients
    for value in outcome.weights.values():
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert outcome.quorum_met
    assert outcome.record.module_shares["encoder"] == {"a": 0.5, "b": 0.5}


def test_the_record_of_an_accepted_site_holds_what_it_reported():
    report = {"losses": {"total": 0.25}, "pseudo_label_rate": 0.5, "steps": 7, "seconds": {"step": 2.0}}
    record = _round(_sites("a", a=sends(**report))).record
    site = record.sites["a"]
    assert (site.state, site.reason, site.steps, site.seconds) == ("accepted", None, 7, {"step": 2.0})
    assert site.losses == {"total": 0.25, "pseudo_label_rate": 0.5}
    assert site.teachers["decoder"].labelled_patients == 10
    assert site.metrics["dice"] == pytest.approx(0.9)
    assert set(record.parts) == {"sites", "admission", "aggregation"}


def test_the_update_norm_of_the_record_is_that_of_all_arrays():
    moved = sends_weights(lambda sent: {name: value * 0 + np.float32(3.0) for name, value in sent.items()})
    # Eleven numbers move from 1 to 3: sqrt(11 x 4).
    assert _round(_sites("a", a=moved)).record.sites["a"].update_norm == pytest.approx(44**0.5)


@pytest.mark.parametrize(
    ("misbehaviour", "state", "reason"),
    [
        (silent, "absent", "absent"),
        (node_error, "absent", "site_error"),
        (refuses("dp_required"), "refused", "dp_required"),
        (refuses("absent"), "refused", "absent"),
        (garbled, "rejected", "reply_malformed"),
        (without_arrays, "rejected", "weights_names"),
        (unreadable_arrays, "rejected", "weights_unreadable"),
        (sends_weights(not_a_number), "rejected", "weights_not_finite"),
        (sends_weights(lambda sent: sent | {"encoder.more": sent["encoder.a"]}), "rejected", "weights_names"),
        (sends_weights(lambda sent: {n: v + np.float32(1e6) for n, v in sent.items()}), "rejected", "update_norm"),
        (
            sends_weights(lambda sent: {n: np.zeros(100_000, np.float32) for n in sent}),
            *("rejected", "reply_too_large"),
        ),
        (sends(round=2), "rejected", "wrong_round"),
        (sends(job_id="another"), "rejected", "wrong_job"),
        (sends(plan_sha256="0" * 64), "rejected", "wrong_plan"),
        (sends(weights_sha256="0" * 64), "rejected", "weights_hash"),
        (sends(site="a"), "rejected", "site_mismatch"),
        (sends(seconds={"total": -1.0}), "rejected", "reply_malformed"),
        (sends(losses={"total": float("nan")}), "rejected", "reply_malformed"),
    ],
)
def test_a_site_that_misbehaves_is_left_out_with_its_reason_and_the_round_goes_on(misbehaviour, state, reason):
    outcome = _round(_sites("abc", b=misbehaviour))
    assert {name: site.state for name, site in outcome.record.sites.items()} == {
        "a": "accepted",
        "b": state,
        "c": "accepted",
    }
    assert outcome.record.sites["b"].reason == reason
    assert outcome.quorum_met
    without = _round(_sites("ac"))
    assert {n: v.tobytes() for n, v in outcome.weights.items()} == {n: v.tobytes() for n, v in without.weights.items()}


def test_a_site_whose_node_left_is_not_asked_and_counts_as_absent():
    sites = _sites("abc")
    outcome = _round(sites, away=[3])
    assert sites[1].asked == []
    assert (outcome.record.sites["b"].state, outcome.record.sites["b"].reason) == ("absent", "absent")


def test_a_site_of_the_job_that_never_showed_itself_counts_as_absent():
    outcome = _round(_sites("ab"), known=["a", "b", "gone"])
    assert outcome.record.sites["gone"].state == "absent"
    assert outcome.quorum_met


def test_a_round_without_its_quorum_changes_nothing_and_says_so():
    outcome = _round(_sites("abc", a=silent, b=refuses("dp_required")))
    assert not outcome.quorum_met
    assert {n: v.tobytes() for n, v in outcome.weights.items()} == {n: v.tobytes() for n, v in weights(1.0).items()}
    assert outcome.record.module_shares == {}
    assert outcome.record.sites["c"].state == "accepted"


@pytest.mark.parametrize(("quorum", "met"), [(1, True), (2, False)])
def test_the_quorum_is_the_one_configured(quorum, met):
    assert _round(_sites("abc", a=silent, b=silent), quorum=quorum).quorum_met is met


@pytest.mark.parametrize(("sites", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_the_quorum_is_more_than_half_unless_configured(sites, needed):
    assert quorum_of(tiny_run(), sites) == needed
    assert quorum_of(tiny_run(quorum=4), sites) == 4


def test_a_job_begins_only_with_a_quorum_of_training_sites():
    held_out = FakeSite(card("unseen", role="held-out"))
    check_federation(_federation(*_sites("ab"), held_out), tiny_run(quorum=2))
    federation = _federation(*_sites("a"), held_out)
    federation.declined["9"] = "dp_required"
    with pytest.raises(InputError, match="1 training sites answered and quorum = 2 are needed.*dp_required") as caught:
        check_federation(federation, tiny_run(quorum=2))
    assert caught.value.reason == "quorum"


def test_a_job_without_training_sites_does_not_begin():
    with pytest.raises(InputError, match="0 training sites"):
        check_federation(_federation(FakeSite(card("unseen", role="held-out"))), tiny_run())


def test_a_module_that_nobody_taught_is_kept_and_named_in_the_record():
    labels_only = {"encoder": Teachers(labelled=4), "classifier": Teachers(labelled=4)}
    outcome = _round([FakeSite(card("a"), teachers=labels_only)])
    assert outcome.record.kept_modules == ("decoder",)
    assert outcome.weights["decoder.c"].tobytes() == weights(1.0)["decoder.c"].tobytes()


def test_counts_above_the_card_weigh_no_more_than_the_card():
    greedy = {module: Teachers(labelled=1_000_000) for module in ("encoder", "classifier", "decoder")}
    honest = {"encoder": Teachers(labelled=40), "classifier": Teachers(labelled=20), "decoder": Teachers(labelled=15)}
    outcome = _round([FakeSite(card("a"), teachers=greedy), FakeSite(card("b"), teachers=honest)])
    assert outcome.record.module_shares == {
        module: {"a": 0.5, "b": 0.5} for module in ("encoder", "classifier", "decoder")
    }


def test_a_training_plan_is_signed_and_bound_to_round_and_weights():
    signed = _orders(rounds=5, local_steps=4).train(3, weights(2.0), "a")
    plan = verified(signed, PLAN_KEY.public_key())
    assert (plan.job_id, plan.round, plan.kind, plan.evaluate_on) == ("job", 3, "train", "validation")
    assert plan.weights_sha256 == weights_sha256(weights(2.0))
    assert (plan.work.first_step, plan.work.steps, plan.work.total_steps) == (8, 4, 20)


@pytest.mark.parametrize(("strategy", "mu"), [("fedavg", 0.0), ("fedprox", 0.3)])
def test_only_fedprox_holds_sites_near_the_weights_they_received(strategy, mu):
    signed = _orders(strategy=strategy, proximal_mu=0.3).train(1, weights(), "a")
    assert verified(signed, PLAN_KEY.public_key()).work.proximal_mu == mu


def test_the_final_model_is_scored_at_every_site_on_test_patients():
    sites = [FakeSite(card("a"), dice=0.8), FakeSite(card("unseen", role="held-out"), dice=0.7)]
    scores = evaluate_everywhere(
        _federation(*sites), _orders(rounds=2), dict.fromkeys(("a", "unseen"), weights()), pictures=0
    )
    assert {name: r.statistics for name, r in scores.reports.items()} == {
        "a": dice_of(0.8),
        "unseen": dice_of(0.7),
    }
    assert {report.split for report in scores.reports.values()} == {"test"}
    assert sites[1].asked == [("evaluate", 2)]


class _Scores(FakeSite):
    """A site that answers an evaluation in a way of its own."""

    odd = staticmethod(silent)

    def evaluate(self, message):
        return self.odd(self, message)


def _other_figures(**fields):
    def answer(site, message):
        from multimix.contract.records import read_request

        report = site.scores(read_request(message.content)[0]).model_copy(update=fields)
        return Message(evaluated_reply(Evaluated(report)), reply_to=message)

    return answer


def _odd_pictures(record):
    def answer(site, message):
        reply = FakeSite.evaluate(site, message)
        reply.content["pictures"] = ConfigRecord(record)
        return reply

    return answer


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (silent, "absent"),
        (node_error, "site_error"),
        (refuses("evaluation_not_released"), "evaluation_not_released"),
        (garbled, "reply_malformed"),
        (_other_figures(site="a"), "evaluation_mismatch"),
        (_other_figures(job_id="another"), "evaluation_mismatch"),
        (_other_figures(plan_sha256="0" * 64), "evaluation_mismatch"),
        (_other_figures(statistics=dice_of(1.0, images=1000)), "evaluation_images"),
        (_odd_pictures({"pngs": [b"png"]}), "reply_malformed"),
        (_odd_pictures({"captions": ["one", "two"], "pngs": [b"png"]}), "reply_malformed"),
    ],
)
def test_a_site_that_cannot_be_scored_is_named_with_its_reason_and_the_others_are_scored(odd, reason):
    bad = _Scores(card("b"))
    bad.odd = odd
    scores = evaluate_everywhere(
        _federation(FakeSite(card("a")), bad), _orders(), dict.fromkeys("ab", weights()), pictures=4
    )
    assert scores.refused == {"b": reason}
    assert list(scores.reports) == ["a"]


def test_no_more_pictures_are_taken_than_were_asked_for():
    many = FakeSite(card("a"), pictures=tuple(Picture(caption=str(n), png=b"png") for n in range(10)))
    scores = evaluate_everywhere(_federation(many), _orders(), {"a": weights()}, pictures=3)
    assert [picture.caption for picture in scores.pictures["a"]] == ["0", "1", "2"]


def test_every_site_may_be_given_weights_of_its_own():
    sites = _sites("ab")
    scores = evaluate_everywhere(_federation(*sites), _orders(), {"a": weights(1.0), "b": weights(2.0)}, pictures=0)
    assert scores.reports["a"].plan_sha256 != scores.reports["b"].plan_sha256
