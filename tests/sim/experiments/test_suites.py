"""Which cases make an experiment, and whether the planned comparisons fit them."""

import pytest

from multimix.errors import RunConfigError
from sim.experiments.case import BaselineCase, CentralCase, EnsembleCase, FederatedCase, case_name, case_sha256, needs
from sim.experiments.contrasts import contrasts_of
from sim.experiments.scales import HELD_OUT, SCALES
from sim.experiments.suites import ABLATIONS, REPEATED, cases, only

EXPERIMENTS, SIZES = ("paper", "ablation", "federated", "scale"), ("smoke", "cpu", "full")
every_suite = pytest.mark.parametrize("scale", SIZES)
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)


def central(experiment, scale):
    return [case for case in cases(experiment, scale) if isinstance(case, CentralCase)]


@every_experiment
@every_suite
def test_a_case_is_named_and_hashed_like_no_other(experiment, scale):
    found = cases(experiment, scale)
    assert len({case_name(case) for case in found}) == len(found)
    assert len({case_sha256(case) for case in found}) == len(found)


@every_suite
def test_a_name_in_two_experiments_is_the_same_case(scale):
    # Experiments of a scale share the folders of their cases.
    hashes = {}
    for experiment in EXPERIMENTS:
        for case in cases(experiment, scale):
            assert hashes.setdefault(case_name(case), case_sha256(case)) == case_sha256(case), case_name(case)


@every_experiment
@every_suite
def test_a_case_comes_after_those_that_it_needs(experiment, scale):
    names = [case_name(case) for case in cases(experiment, scale)]
    for place, case in enumerate(cases(experiment, scale)):
        assert set(needs(case)) <= set(names[:place])


@pytest.mark.parametrize("experiment", ["paper", "ablation"])
@every_suite
def test_all_rows_train_for_as_many_steps_of_as_many_images(experiment, scale):
    found = {(case.steps, case.images_per_group, case.image_size) for case in central(experiment, scale)}
    assert found == {(SCALES[scale].steps, SCALES[scale].images_per_group, SCALES[scale].image_size)}


@pytest.mark.parametrize("experiment", ["paper", "ablation"])
@every_suite
def test_a_row_without_a_task_has_none_of_its_labels(experiment, scale):
    for case in central(experiment, scale):
        assert (case.labels == 0) == (not case.method.network.classification)
        assert (case.masks == 0) == (not case.method.network.segmentation)


def test_rows_without_a_task_are_among_the_paper_s():
    found = {case.row for case in central("paper", "full") if 0 in (case.labels, case.masks)}
    assert found == {"u-net", "enc", "enc-ssl"}


def seeds_by_row(experiment, scale):
    found = {}
    for case in cases(experiment, scale):
        if not isinstance(case, BaselineCase):
            found.setdefault(case.row, set()).add(case.seed)
    return found


@pytest.mark.parametrize(("scale", "more"), [("smoke", {0, 1}), ("cpu", {0, 1, 2})])
def test_only_the_repeated_rows_have_more_seeds_where_time_is_short(scale, more):
    found = seeds_by_row("paper", scale)
    assert {row for row, seeds in found.items() if seeds == more} == set(REPEATED)
    assert {row for row, seeds in found.items() if seeds == {0}} == set(found) - set(REPEATED)


@pytest.mark.parametrize("experiment", ["paper", "federated"])
def test_every_row_has_all_seeds_where_time_is_not_short(experiment):
    assert set(map(frozenset, seeds_by_row(experiment, "full").values())) == {frozenset(SCALES["full"].seeds)}


def test_the_full_grid_has_every_number_of_labels_with_every_number_of_masks():
    found = {(case.labels, case.masks) for case in central("paper", "full") if case.row == "paper"}
    assert found == {(labels, masks) for labels in (100, 1000, None) for masks in (10, 50, None)}


@pytest.mark.parametrize("experiment", ["paper", "federated"])
@every_suite
def test_every_planned_comparison_is_of_rows_that_are_trained(experiment, scale):
    groups = {}
    for case in cases(experiment, scale):
        groups.setdefault(case.row, set()).add(case.group)
    for contrast in contrasts_of(experiment):
        if contrast.groups is None:
            assert groups[contrast.first] & groups[contrast.second], contrast
        else:
            assert contrast.groups[0] in groups[contrast.first], contrast
            assert contrast.groups[1] in groups[contrast.second], contrast


@pytest.mark.parametrize("experiment", ["paper", "federated"])
def test_no_comparison_is_planned_twice(experiment):
    found = [
        (each.first, each.second + each.control, each.groups, which)
        for each in contrasts_of(experiment)
        for which in each.sets
    ]
    assert len(set(found)) == len(found)


def test_the_unseen_hospital_of_a_comparison_trained_neither_side():
    runs = {(case.row, case.group): case for case in cases("federated", "cpu") if not isinstance(case, BaselineCase)}
    unseen = [(each, name) for each in contrasts_of("federated") for name, _ in each.sets if name.endswith("/all")]
    assert unseen
    for contrast, name in unseen:
        for row, group in zip((contrast.first, contrast.second), contrast.groups, strict=True):
            case = runs[row, group]
            members = (*case.classifiers, *case.segmenters) if isinstance(case, EnsembleCase) else (case,)
            assert all(name.partition("/")[0] in member.config.held_out() for member in members)


def test_a_baseline_stands_in_every_cell_and_beside_every_hospital_that_is_held_out():
    for experiment, groups in {
        "paper": {"1000-50", "100-10"},
        "federated": {f"without-{name}" for name in HELD_OUT},
    }.items():
        found = [case for case in cases(experiment, "cpu") if isinstance(case, BaselineCase)]
        assert {(case.row, case.group) for case in found} == {
            (row, group) for row in ("majority", "mean-mask", "thumbnail-ridge") for group in groups
        }


def test_no_case_names_a_folder_of_this_machine():
    # So that its hash is the same on any machine.
    for case in cases("federated", "cpu"):
        if isinstance(case, FederatedCase):
            assert (case.config.data, case.config.out, case.config.resume) == ("", "", False)


def test_pooled_training_sees_as_many_images_a_step_as_all_hospitals():
    runs = {case.row: case.config for case in cases("federated", "cpu") if isinstance(case, FederatedCase)}
    assert runs["pooled"].pooled
    # montgomery is held out of the six.
    assert runs["pooled"].images_per_group == 5 * runs["fedavg"].images_per_group


@pytest.mark.parametrize("scale", SIZES)
def test_private_rows_are_private_for_patients_and_begin_with_phantoms(scale):
    found = [case for case in cases("federated", scale) if case.row.startswith("epsilon")]
    assert {case.config.dp_epsilon for case in found} == ({8.0} if scale == "smoke" else {8.0, 3.0})
    assert all(case.from_phantoms and case.config.patient_level for case in found)


@pytest.mark.parametrize("scale", SIZES)
def test_what_private_rows_begin_with_has_seen_phantoms_alone_and_comes_first(scale):
    found = cases("federated", scale)
    private = [case for case in found if isinstance(case, FederatedCase) and case.from_phantoms]
    for case in private:
        public = case.from_phantoms
        assert public in found
        assert needs(case) == (case_name(public),)
        assert (public.config.data, public.config.patient_level) == ("", False)
        assert (public.config.image_size, public.config.width) == (case.config.image_size, case.config.width)
        assert (public.group, public.scored.hold_out) == (case.group, case.config.hold_out)
    assert any(not case.config.patient_level for case in private)  # the same without privacy


def test_the_row_without_privacy_has_the_same_start_labels_and_masks():
    found = {case.row: case for case in cases("federated", "cpu")}
    private, without = found["epsilon-8"], found["not-private"]
    assert private.from_phantoms == without.from_phantoms
    assert (private.config.labels, private.config.masks) == (without.config.labels, without.config.masks) == ("", "")


def test_what_a_public_model_has_seen_is_part_of_what_begins_with_it():
    found = {case.row: case for case in cases("federated", "cpu")}
    public = found["phantoms"].model_copy(update={"config": found["phantoms"].config.model_copy(update={"rounds": 1})})
    other = found["epsilon-8"].model_copy(update={"from_phantoms": public})
    assert case_sha256(other) != case_sha256(found["epsilon-8"])


def test_every_mu_has_a_row_of_its_own():
    found = {case.row: case.config.proximal_mu for case in cases("federated", "full") if case.row.startswith("fedprox")}
    assert sorted(found.values()) == [0.001, 0.01, 0.1, 1.0]


def test_an_ablation_changes_one_thing_of_modern():
    modern = next(case for case in central("paper", "cpu") if case.row == "modern").method.model_dump()
    rows = {name for name, _, _ in ABLATIONS}
    for case in (each for each in central("ablation", "cpu") if each.row in rows):
        changed = [
            (section, key)
            for section, values in case.method.model_dump().items()
            if isinstance(values, dict)
            for key, value in values.items()
            if modern[section][key] != value
        ]
        assert len({section for section, _ in changed}) == 1, case.row
        assert len(changed) == (2 if case.row == "stronger-views" else 1), case.row


def test_chosen_cases_come_in_the_order_asked_for():
    found = cases("paper", "smoke")
    names = [case_name(found[4]), case_name(found[1])]
    assert [case_name(case) for case in only(found, names)] == names


def test_a_chosen_case_brings_those_that_it_needs():
    found = cases("federated", "smoke")
    ensemble = next(case for case in found if isinstance(case, EnsembleCase))
    assert [case_name(case) for case in only(found, [case_name(ensemble)])] == [*needs(ensemble), case_name(ensemble)]


def test_runs_of_all_seeds_test_on_the_same_patients():
    found = {case.config.split_seed for case in cases("federated", "full") if isinstance(case, FederatedCase)}
    assert found == {0}


def test_a_case_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(RunConfigError, match="'nothing'.*modern_8-4_s0") as caught:
        only(cases("paper", "smoke"), ["nothing"])
    assert caught.value.reason == "case_unknown"
