"""Budgets pick patients, pools partition the train rows, draws depend on position alone."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.data.sampling import Budget, Pools, draw, make_pools, parse_budget, patients, site_budgets, union
from multimix.errors import ManifestError, RunConfigError

HEART, OUT = "behind_heart", "mediastinum_excluded"


@dataclass(frozen=True)
class Columns:
    """The columns of a store that sampling reads."""

    patient: np.ndarray
    label: np.ndarray
    mask_row: np.ndarray
    convention: np.ndarray
    split: np.ndarray


def columns(*rows: tuple[int, int, str, str]) -> Columns:
    """Rows of (patient, label, mask convention or "", split)."""
    patient, label, convention, split = (list(column) for column in zip(*rows, strict=True))
    return Columns(
        patient=np.array(patient, np.int32),
        label=np.array(label, np.int8),
        mask_row=np.array([i if name else -1 for i, name in enumerate(convention)], np.int32),
        convention=np.array(convention),
        split=np.array(split),
    )


def pools(store: Columns, budget: Budget, *, conventions=None, seed: int = 0, rows=None) -> Pools:
    rows = np.arange(len(store.patient)) if rows is None else rows
    return make_pools(store, rows, budget=budget, conventions=conventions, seed=seed, site="a")


stores = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.sampled_from([-1, 0, 1, 2]),
        st.sampled_from(["", HEART, OUT]),
        st.sampled_from(["train", "train", "test"]),
    ),
    min_size=1,
    max_size=40,
).map(lambda rows: columns(*rows))
budgets = st.one_of(st.none(), st.integers(0, 45))


@given(store=stores, labels=budgets, masks=budgets, seed=st.integers(0, 3))
def test_each_task_partitions_the_train_rows(store, labels, masks, seed):
    found = pools(store, Budget(labels, masks), seed=seed)
    train = np.flatnonzero(store.split == "train").tolist()
    for one, other in (
        (found.labelled_classification, found.unlabelled_classification),
        (found.labelled_segmentation, found.unlabelled_segmentation),
    ):
        assert sorted([*one.tolist(), *other.tolist()]) == train


@given(store=stores, count=st.integers(0, 45))
def test_a_budget_is_reached_exactly_or_capped(store, count):
    usable = (store.split == "train") & ((store.label == 0) | (store.label == 1))
    found = pools(store, Budget(labels=count)).labelled_classification
    assert len(found) == min(count, usable.sum())
    assert usable[found].all()


@given(store=stores, count=st.integers(0, 45))
def test_a_smaller_budget_is_part_of_a_larger_one(store, count):
    small, large = pools(store, Budget(count, count)), pools(store, Budget(count + 1, count + 1))
    assert set(small.labelled_classification) <= set(large.labelled_classification)
    assert set(small.labelled_segmentation) <= set(large.labelled_segmentation)


@given(store=stores, count=st.integers(0, 45))
def test_both_classes_get_half_where_there_are_enough(store, count):
    available = [int(((store.split == "train") & (store.label == label)).sum()) for label in (0, 1)]
    found = pools(store, Budget(labels=count)).labelled_classification
    got = [int((store.label[found] == label).sum()) for label in (0, 1)]
    if min(available) >= (count + 1) // 2:
        assert got == [(count + 1) // 2, count // 2]
    else:  # the scarce class is used up
        assert min(got) >= min(*available, count // 2)


@given(store=stores, count=st.integers(0, 45), seed=st.integers(0, 3))
def test_a_mask_budget_takes_whole_patients_and_cuts_at_most_one(store, count, seed):
    found = pools(store, Budget(masks=count), seed=seed).labelled_segmentation
    usable = np.flatnonzero((store.split == "train") & (store.mask_row >= 0))
    cut = [
        person
        for person in set(store.patient[found].tolist())
        if (store.patient[found] == person).sum() < (store.patient[usable] == person).sum()
    ]
    assert len(cut) <= 1


def test_only_masks_of_an_accepted_convention_are_labelled():
    store = columns((0, 0, HEART, "train"), (1, 0, OUT, "train"), (2, 0, "", "train"))
    found = pools(store, Budget(), conventions=frozenset({OUT}))
    assert found.labelled_segmentation.tolist() == [1]
    assert found.unlabelled_segmentation.tolist() == [0, 2]


def test_other_and_unknown_are_unlabelled_for_classification():
    store = columns(*((i, label, "", "train") for i, label in enumerate([0, 1, 2, -1])))
    found = pools(store, Budget())
    assert found.labelled_classification.tolist() == [0, 1]
    assert found.unlabelled_classification.tolist() == [2, 3]


def test_an_exact_budget_above_what_there_is_is_refused():
    store = columns((0, 0, OUT, "train"), (1, 1, OUT, "train"), (2, 1, OUT, "test"))
    assert len(pools(store, Budget(labels=2, masks=2, exact=True)).labelled_segmentation) == 2
    for budget in (Budget(labels=3, exact=True), Budget(masks=3, exact=True)):
        with pytest.raises(ManifestError, match=r"^a is asked for 3 .* have 2") as caught:
            pools(store, budget)
        assert caught.value.reason == "budget_too_large"


def test_only_the_rows_of_the_site_are_used():
    store = columns(*((i, i % 2, OUT, "train") for i in range(6)))
    found = pools(store, Budget(), rows=np.array([4, 1]))
    assert found.labelled_classification.tolist() == [1, 4]


def test_another_seed_picks_other_patients():
    store = columns(*((i, i % 2, OUT, "train") for i in range(40)))
    picks = {tuple(pools(store, Budget(masks=5), seed=seed).labelled_segmentation) for seed in range(4)}
    assert len(picks) == 4


@given(store=stores, labels=budgets, masks=budgets, owner=st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_pools_of_several_sites_together_have_the_labels_and_masks_of_each(store, labels, masks, owner):
    people = np.array(owner)[store.patient]
    parts = [pools(store, Budget(labels, masks), rows=np.flatnonzero(people == site)) for site in range(3)]
    whole = union(parts)
    for name in ("labelled_classification", "labelled_segmentation"):
        assert getattr(whole, name).tolist() == sorted(row for part in parts for row in getattr(part, name).tolist())
    train = np.flatnonzero(store.split == "train").tolist()
    for one, other in (
        (whole.labelled_classification, whole.unlabelled_classification),
        (whole.labelled_segmentation, whole.unlabelled_segmentation),
    ):
        assert sorted([*one.tolist(), *other.tolist()]) == train


def test_what_one_site_has_a_label_for_is_labelled_for_all():
    rows = [np.array(each, np.int64) for each in ([1, 2], [3], [1], [2, 3])]
    whole = union([Pools(*rows), Pools(rows[1], rows[0], rows[3], rows[2])])
    assert (whole.labelled_classification.tolist(), whole.unlabelled_classification.tolist()) == ([1, 2, 3], [])
    assert (whole.labelled_segmentation.tolist(), whole.unlabelled_segmentation.tolist()) == ([1, 2, 3], [])


def test_patients_are_counted_once():
    store = columns((0, 0, "", "train"), (0, 0, "", "train"), (1, 0, "", "train"))
    assert patients(store, np.array([0, 1])) == 1
    assert patients(store, np.array([0, 1, 2])) == 2
    assert patients(store, np.array([], np.int64)) == 0


POOL = np.array([3, 5, 8, 13, 21])


@given(start=st.integers(0, 60), count=st.integers(0, 30), cut=st.integers(0, 30))
def test_a_draw_does_not_depend_on_how_it_is_batched(start, count, cut):
    cut = min(cut, count)
    first = draw(POOL, key=(1, "x"), start=start, count=cut)
    second = draw(POOL, key=(1, "x"), start=start + cut, count=count - cut)
    whole = draw(POOL, key=(1, "x"), start=start, count=count)
    assert [*first.tolist(), *second.tolist()] == whole.tolist()


@given(epoch=st.integers(0, 50), key=st.integers(0, 3))
def test_every_epoch_visits_every_row_once(epoch, key):
    drawn = draw(POOL, key=(key,), start=epoch * len(POOL), count=len(POOL))
    assert sorted(drawn.tolist()) == POOL.tolist()


def test_epochs_and_keys_are_shuffled_differently():
    pool = np.arange(50)
    first, second = draw(pool, key=(0,), start=0, count=100).reshape(2, 50).tolist()
    assert first != second
    assert first != draw(pool, key=(1,), start=0, count=50).tolist()


def test_an_empty_pool_gives_nothing():
    assert draw(np.empty(0, np.int64), key=(0,), start=3, count=7).tolist() == []


@pytest.mark.parametrize(
    ("text", "general", "exact"),
    [
        ("", None, {}),
        ("200", 200, {}),
        ("0", 0, {}),
        ("200,jsrt=40", 200, {"jsrt": 40}),
        (" jsrt = 40 , nih14=1", None, {"jsrt": 40, "nih14": 1}),
    ],
)
def test_the_budget_syntax_is_read(text, general, exact):
    assert parse_budget(text) == (general, exact)


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "jsrt", "=4", "a=", "1,2", "a=1,a=2", "a=b=²"])
def test_a_budget_that_is_not_understood_is_refused(text):
    with pytest.raises(RunConfigError, match="200,jsrt=40") as caught:
        parse_budget(text)
    assert caught.value.reason == "budget_syntax"


def test_a_general_budget_may_exceed_some_sites_but_not_all():
    available = {"a": 10, "b": 3}
    assert site_budgets("labels", "5", available) == {"a": 5, "b": 5}
    with pytest.raises(ManifestError, match="a 10, b 3") as caught:
        site_budgets("labels", "11", available)
    assert caught.value.reason == "budget_too_large"


def test_a_named_budget_must_be_met_by_its_site():
    available = {"a": 10, "b": 3}
    assert site_budgets("masks", "5,b=3", available) == {"a": 5, "b": 3}
    with pytest.raises(ManifestError, match=r"b is asked for 4 masks but .* 3"):
        site_budgets("masks", "5,b=4", available)


def test_a_budget_for_a_site_that_does_not_train_is_refused_with_the_names():
    with pytest.raises(RunConfigError, match=r"'c'.*Choose from: a, b") as caught:
        site_budgets("labels", "c=1", {"a": 10, "b": 3})
    assert caught.value.reason == "hospital_unknown"
