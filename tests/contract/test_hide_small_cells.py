"""Tables of people: nothing below the minimum is published, and nothing hidden follows from what is.

The attacker of these tests knows the code: a hidden count is safe only if other tables of the same total, run
through the very function, publish the same and differ in that count.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.contract.suppression import hide_small_cells, lower_parts

tables = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 60), min_size=1, max_size=8)
minimums = st.integers(2, 20)


def compositions(total: int, count: int) -> Iterator[tuple[int, ...]]:
    """Every way to deal `total` people to `count` cells."""
    for first in product(range(total + 1), repeat=count - 1):
        if sum(first) <= total:
            yield (*first, total - sum(first))


def published(cells: dict[str, int], minimum: int) -> tuple[tuple[str, int], ...]:
    shown, hidden = hide_small_cells(cells, minimum)
    return tuple((name, -1 if name in hidden else count) for name, count in shown.items())


@given(cells=tables, minimum=minimums)
def test_what_is_shown_is_true_and_never_small(cells, minimum):
    shown, hidden = hide_small_cells(cells, minimum)
    assert shown.keys() == cells.keys()
    for name, count in shown.items():
        assert count == (0 if name in hidden else cells[name])
        assert count == 0 or count >= minimum


@given(cells=tables, minimum=minimums)
def test_every_small_cell_is_hidden_and_nothing_is_if_none_is_small(cells, minimum):
    _, hidden = hide_small_cells(cells, minimum)
    small = {name for name, count in cells.items() if 0 < count < minimum}
    assert small <= set(hidden)
    assert bool(small) == bool(hidden)
    assert list(hidden) == sorted(hidden)


@given(cells=tables, minimum=minimums)
def test_total_minus_what_is_shown_is_nobody_or_at_least_the_minimum(cells, minimum):
    shown, _ = hide_small_cells(cells, minimum)
    rest = sum(cells.values()) - sum(shown.values())
    assert rest == 0 or rest >= min(minimum, sum(cells.values()))


@given(cells=tables, minimum=minimums)
def test_beside_a_large_cell_a_small_one_is_never_hidden_alone(cells, minimum):
    _, hidden = hide_small_cells(cells, minimum)
    if hidden and max(cells.values()) >= minimum:
        values = [cells[name] for name in hidden]
        assert min(values) < minimum <= max(values)


@given(cells=tables, minimum=minimums, data=st.data())
def test_exchanging_hidden_counts_changes_nothing_that_is_published(cells, minimum, data):
    _, hidden = hide_small_cells(cells, minimum)
    shuffled = data.draw(st.permutations(hidden))
    exchanged = cells | {name: cells[other] for name, other in zip(hidden, shuffled, strict=True)}
    assert published(exchanged, minimum) == published(cells, minimum)


@given(cells=tables, minimum=minimums)
def test_only_as_much_as_needed_is_hidden(cells, minimum):
    _, hidden = hide_small_cells(cells, minimum)
    large = {cells[name] for name in hidden if cells[name] >= minimum}
    assert len(large) <= 1
    assert large <= {min((count for count in cells.values() if count >= minimum), default=0)}


@given(cells=tables, minimum=st.integers(-3, 1))
def test_a_minimum_of_one_hides_nothing(cells, minimum):
    assert hide_small_cells(cells, minimum) == (cells, ())


def test_ten_cells_of_one_patient_each_are_not_told_from_other_tables():
    cells = {name: int(name != "k") for name in "abcdefghijk"}  # ten people in ten of eleven cells
    shown, hidden = hide_small_cells(cells, 10)
    assert set(hidden) == cells.keys()  # the empty one too, or ten people in ten cells would be one each
    assert not any(shown.values())


@pytest.mark.parametrize("minimum", [3, 4, 5])
@pytest.mark.parametrize(("cells", "total"), [(2, 12), (3, 11), (3, 12), (3, 13), (4, 9), (4, 10)])
def test_no_attacker_who_knows_the_code_finds_a_hidden_count(cells, total, minimum):
    looks_like = defaultdict(list)
    for counts in compositions(total, cells):
        table = dict(zip("abcd"[:cells], counts, strict=True))
        looks_like[published(table, minimum)].append(table)
    for shown, candidates in looks_like.items():
        for name, count in shown:
            if count == -1:
                assert len({table[name] for table in candidates}) > 1, (shown, candidates)


parts_and_total = st.integers(0, 80).flatmap(
    lambda total: st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.integers(0, total + 5), max_size=4), st.just(total)
    )
)


@given(given=parts_and_total, minimum=st.integers(1, 20))
def test_parts_are_only_ever_lowered_and_never_small(given, minimum):
    parts, total = given
    shown = lower_parts(parts, total, minimum)
    assert shown.keys() == parts.keys()
    for name, count in shown.items():
        assert count <= min(parts[name], total)
        assert count == 0 or count >= minimum


@given(given=parts_and_total, minimum=st.integers(1, 20))
def test_the_rest_of_the_total_is_never_small_where_the_total_is_not(given, minimum):
    parts, total = given
    rest = total - sum(lower_parts(parts, total, minimum).values())
    assert rest <= 0 or rest >= min(minimum, total)


@given(given=parts_and_total)
def test_with_a_minimum_of_one_parts_are_the_truth(given):
    parts, total = given
    assert lower_parts(parts, total, 1) == {name: min(count, total) for name, count in parts.items()}


@pytest.mark.parametrize("minimum", [2, 3, 5])
@pytest.mark.parametrize("total", [5, 9, 12, 16])
def test_no_attacker_who_knows_the_code_finds_a_small_part_or_rest(total, minimum):
    looks_like = defaultdict(set)
    for counts in compositions(total, 3):
        shown = lower_parts(dict(zip("ab", counts[:2], strict=True)), total, minimum)
        looks_like[tuple(shown.items())].add(counts)
    for candidates in looks_like.values():
        for values in zip(*candidates, strict=True):
            only = set(values)
            assert len(only) > 1 or not 0 < only.pop() < minimum


def test_the_largest_part_is_lowered_for_a_small_rest():
    assert lower_parts({"a": 25, "b": 0}, 30, 10) == {"a": 20, "b": 0}  # a rest of 5 becomes 10
    assert lower_parts({"a": 12}, 15, 10) == {"a": 0}  # 12 - 7 would be small
    assert lower_parts({"a": 30}, 30, 10) == {"a": 30}


def test_the_order_of_the_cells_does_not_matter():
    for order in permutations({"a": 3, "b": 12, "c": 12, "d": 40}.items()):
        assert hide_small_cells(dict(order), 10)[1] == ("a", "b", "c")
