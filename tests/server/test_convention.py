import pytest
from fake_sites import card, dice_of

from multimix.contract.statistics import add
from multimix.errors import RunConfigError
from server.convention import choose_convention, federated_mean_mask, site_figures

SIDE = 32 * 32


def _masks(site, masked, role="train", **fields):
    counts = {"training_patients": 100, "patients": 100, "images": 100} | fields
    return card(site, role=role, masked_patients=masked, conventions=tuple(sorted(masked)), **counts)


def _cards(*cards):
    return {each.site: each for each in cards}


def test_all_accepts_every_convention():
    assert choose_convention(_cards(_masks("a", {"heart": 3})), "all") is None


def test_a_named_convention_is_taken_where_a_training_site_has_it():
    cards = _cards(_masks("a", {"heart": 30}), _masks("b", {"expert": 1}))
    assert choose_convention(cards, "expert") == "expert"


def test_an_unknown_convention_is_refused_and_the_known_ones_are_named():
    cards = _cards(_masks("a", {"heart": 3}), _masks("b", {"expert": 3}))
    with pytest.raises(RunConfigError, match="'hart'.*expert, heart") as caught:
        choose_convention(cards, "hart")
    assert caught.value.reason == "mask_convention"


def test_a_convention_that_only_a_held_out_site_has_cannot_be_learned():
    with pytest.raises(RunConfigError, match="no masks"):
        choose_convention(_cards(_masks("a", {}), _masks("unseen", {"heart": 9}, role="held-out")), "heart")


def test_auto_takes_the_convention_with_most_masked_training_patients():
    cards = _cards(_masks("a", {"heart": 10}), _masks("b", {"expert": 6}), _masks("c", {"expert": 6}))
    assert choose_convention(cards, "auto") == "expert"


def test_auto_breaks_a_tie_by_name_whatever_the_order_of_sites():
    a, b = _masks("a", {"heart": 5}), _masks("b", {"expert": 5})
    assert choose_convention(_cards(a, b), "auto") == choose_convention(_cards(b, a), "auto") == "expert"


def test_auto_learns_what_the_held_out_sites_will_be_scored_by():
    unseen = _masks("unseen", {"expert": 9}, role="held-out")
    cards = _cards(_masks("a", {"heart": 30}), _masks("b", {"expert": 2}), unseen)
    assert choose_convention(cards, "auto") == "expert"


def test_auto_ignores_held_out_sites_that_disagree_or_cannot_be_trained_for():
    trained = _masks("a", {"heart": 5, "expert": 2})
    one, other = (_masks(f"unseen-{n}", {n: 9}, role="held-out") for n in ("heart", "expert"))
    foreign = _masks("unseen", {"foreign": 9}, role="held-out")
    assert choose_convention(_cards(trained, one, other), "auto") == "heart"
    assert choose_convention(_cards(trained, foreign), "auto") == "heart"


def test_auto_without_any_mask_accepts_all():
    assert choose_convention(_cards(_masks("a", {})), "auto") is None


def test_the_mean_mask_is_weighted_by_masked_patients_and_leaves_held_out_sites_aside():
    cards = _cards(
        _masks("a", {"heart": 10}, mean_masks={"heart": [100] * SIDE}),
        _masks("b", {"heart": 30}, mean_masks={"heart": [200] * SIDE}),
        _masks("unseen", {"heart": 40}, role="held-out", mean_masks={"heart": [0] * SIDE}),
    )
    assert federated_mean_mask(cards, "heart") == (175,) * SIDE  # (10 x 100 + 30 x 200) / 40


def test_the_mean_mask_is_of_the_learned_convention_or_of_all():
    masks = {"expert": [0] * SIDE, "heart": [90] * SIDE}
    cards = _cards(_masks("a", {"expert": 20, "heart": 10}, mean_masks=masks))
    assert federated_mean_mask(cards, "heart") == (90,) * SIDE
    assert federated_mean_mask(cards, None) == (30,) * SIDE  # (20 x 0 + 10 x 90) / 30


def test_there_is_no_mean_mask_where_no_site_released_one():
    assert federated_mean_mask(_cards(_masks("a", {"heart": 3})), "heart") is None


def test_a_site_is_scored_by_the_learned_convention_where_it_has_it_else_by_its_own():
    both = add(dice_of(0.9, convention="heart"), dice_of(0.5, convention="expert"))
    assert site_figures(both, "heart")["dice"] == pytest.approx(0.9)
    assert site_figures(both, None)["dice"] == pytest.approx(0.7)  # four images of each
    assert site_figures(dice_of(0.5, convention="expert"), "heart")["dice"] == pytest.approx(0.5)
