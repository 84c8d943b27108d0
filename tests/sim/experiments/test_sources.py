"""The paper's images: who is whose patient, and in which split."""

import numpy as np
import pytest
from experiment_fakes import SIDE, TEST, TRAIN, copy_of, write_chex, write_manifest, write_noise

from multimix.errors import ManifestError
from sim.experiments import sources
from sim.experiments.sources import paper_store, scored_sets, training_data


def patients_of(store, source, split):
    return set(store.patient[(store.source == source) & (store.split == split)].tolist())


def counts(store, source):
    names, found = np.unique(store.split[store.source == source], return_counts=True)
    return dict(zip(names.tolist(), found.tolist(), strict=True))


def images_of(labels):
    return sum(len(names) for names in labels.values())


@pytest.mark.parametrize("source", ["chex224", "jsrt"])
def test_no_patient_is_in_two_splits(store, source):
    parts = [patients_of(store, source, split) for split in ("train", "validation", "test")]
    assert all(parts)
    assert len(set.union(*parts)) == sum(len(part) for part in parts)


def test_all_images_of_a_child_are_of_one_patient(store):
    # TRAIN: 8 children with pneumonia, two images each; 9 numbers of normal ones, four of them with and without
    # NORMAL2. TEST: one child of two images, four of one.
    chosen = store.source == "chex224"
    train = chosen & (store.split != "test")
    assert len(np.unique(store.patient[train & (store.label == 1)])) == 8
    assert len(np.unique(store.patient[train & (store.label == 0)])) == 9
    assert len(np.unique(store.patient[chosen & (store.split == "test")])) == 5


def test_numbers_of_children_restart_between_train_and_test(store):
    # person1 and IM-0115 are in both, and nobody is in both.
    test = patients_of(store, "chex224", "test")
    assert not test & (patients_of(store, "chex224", "train") | patients_of(store, "chex224", "validation"))


def test_the_official_test_stays_the_test_and_a_tenth_of_the_other_children_validates(store):
    assert counts(store, "chex224")["test"] == images_of(TEST)
    assert counts(store, "chex224")["train"] + counts(store, "chex224")["validation"] == images_of(TRAIN)
    assert len(patients_of(store, "chex224", "validation")) == round(0.1 * 17)


def test_equal_files_are_of_one_patient(data, tmp_path):
    folder = copy_of(data, tmp_path / "data")
    train = folder / "chex224" / "train" / "NORMAL"
    first, second = train / "IM-0901-0001.jpeg", train / "NORMAL2-IM-0902-0001.jpeg"
    write_noise(first, 901)
    second.write_bytes(first.read_bytes())
    write_noise(train / "IM-0902-0002.jpeg", 902)
    before = len(np.unique(paper_store(data, cache=tmp_path, image_size=SIDE).patient))
    # Three images more; the children 901 and 902 are the same one.
    assert len(np.unique(paper_store(folder, cache=tmp_path, image_size=SIDE).patient)) == before + 1


def test_children_of_equal_files_are_one_through_others_too(data, tmp_path):
    folder = copy_of(data, tmp_path / "data")
    train = folder / "chex224" / "train" / "PNEUMONIA"
    for number in (901, 902):
        write_noise(train / f"person{number}_virus_1.jpeg", number)
    write_noise(train / "person903_virus_1.jpeg", 903)
    # 901 is 903 and 902 is 903, and nothing says so of 901 and 902.
    for number in (901, 902):
        (train / f"person903_virus_{number}.jpeg").write_bytes((train / f"person{number}_virus_1.jpeg").read_bytes())
    before = len(np.unique(paper_store(data, cache=tmp_path, image_size=SIDE).patient))
    assert len(np.unique(paper_store(folder, cache=tmp_path, image_size=SIDE).patient)) == before + 1


def test_a_patient_of_another_source_who_is_numbered_like_one_of_jsrt_tests(tmp_path):
    cxr = tmp_path / "cxr"
    cxr.mkdir()
    rows = [[f"{name}{n}.png", "", name, "", "normal", f"P{n}", ""] for name in ("jsrt", "nih14") for n in range(20)]
    for row in rows:
        (cxr / row[0]).touch()
    write_manifest(cxr, rows)
    assert {record.split for record in sources._cxr(tmp_path) if record.source == "nih14"} == {"test"}


def test_a_child_whose_file_is_in_the_test_does_not_train(data, tmp_path):
    folder = copy_of(data, tmp_path / "data")
    train, test = (folder / "chex224" / split / "PNEUMONIA" for split in ("train", "test"))
    (train / "person901_virus_1.jpeg").write_bytes((test / "person1_virus_3.jpeg").read_bytes())
    write_noise(train / "person901_virus_2.jpeg", 901)
    store = paper_store(folder, cache=tmp_path, image_size=SIDE)
    assert counts(store, "chex224")["test"] == images_of(TEST) + 2
    assert len(patients_of(store, "chex224", "test")) == 5


def test_jsrt_is_split_in_the_proportions_of_the_paper(store):
    # 19 patients of 247: 111 of them train until place 8.54, and with 13 more until 9.54.
    assert counts(store, "jsrt") == {"train": 9, "validation": 1, "test": 9}


def test_the_whole_jsrt_is_split_as_in_the_paper(tmp_path):
    cxr = tmp_path / "cxr"
    cxr.mkdir()
    for n in range(247):
        (cxr / f"{n}.png").touch()
    write_manifest(cxr, [[f"{n}.png", "", "jsrt", "", "normal", f"P{n}", ""] for n in range(247)])
    splits = [record.split for record in sources._cxr(tmp_path)]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [111, 13, 123]


@pytest.mark.parametrize("source", ["nih14", "montgomery", "shenzhen"])
def test_a_cross_domain_source_is_for_testing_alone(store, source):
    assert set(counts(store, source)) == {"test"}


def test_the_copy_of_the_children_and_the_collection_are_left_out(store):
    assert set(store.source.tolist()) == {"chex224", "jsrt", "nih14", "montgomery", "shenzhen"}


def test_what_is_scored_are_validation_and_test_by_source(store):
    found = {(each.name, each.split): len(each.rows) for each in scored_sets(store)}
    assert found == {
        ("chex224", "validation"): counts(store, "chex224")["validation"],
        ("chex224", "test"): images_of(TEST),
        ("jsrt", "validation"): 1,
        ("jsrt", "test"): 9,
        ("nih14", "test"): 10,
        ("montgomery", "test"): 5,
        ("shenzhen", "test"): 10,
    }


def pools_of(store, labels=None, masks=None, *, seed=0, shared=False):
    return training_data(store, labels=labels, masks=masks, seed=seed, shared=shared).pools


def all_rows(pools):
    return {
        *pools.labelled_classification,
        *pools.unlabelled_classification,
        *pools.labelled_segmentation,
        *pools.unlabelled_segmentation,
    }


@pytest.mark.parametrize("shared", [True, False])
def test_only_training_patients_of_the_in_domain_sources_train(store, shared):
    rows = np.array(sorted(all_rows(pools_of(store, 4, 2, shared=shared))))
    expected = np.flatnonzero(np.isin(store.source, ("chex224", "jsrt")) & (store.split == "train"))
    assert rows.tolist() == expected.tolist()


@pytest.mark.parametrize("budget", [0, 1, 5, 8])
def test_a_budget_is_met_exactly_and_both_classes_by_turns(store, budget):
    pools = pools_of(store, budget, budget)
    assert (len(pools.labelled_classification), len(pools.labelled_segmentation)) == (budget, budget)
    normal, pneumonia = (int((store.label[pools.labelled_classification] == c).sum()) for c in (0, 1))
    assert (normal, pneumonia) == ((budget + 1) // 2, budget // 2)


def test_without_a_budget_everything_that_has_a_label_or_mask_is_used(store):
    pools = pools_of(store)
    train = store.split == "train"
    assert len(pools.labelled_classification) == (train & (store.source == "chex224")).sum()
    assert len(pools.labelled_segmentation) == (train & (store.source == "jsrt")).sum()


def test_a_smaller_budget_is_part_of_a_larger_one(store):
    small, large = pools_of(store, 4, 2), pools_of(store, 9, 5)
    assert set(small.labelled_classification) < set(large.labelled_classification)
    assert set(small.labelled_segmentation) < set(large.labelled_segmentation)


def test_labels_are_those_of_the_children_and_masks_those_of_jsrt(store):
    pools = pools_of(store, shared=True)
    assert set(store.source[pools.labelled_classification]) == {"chex224"}
    assert set(store.source[pools.labelled_segmentation]) == {"jsrt"}


def test_unlabelled_images_that_are_not_shared_serve_the_task_of_their_source(store):
    pools = pools_of(store, 4, 2)
    assert set(store.source[pools.unlabelled_classification]) == {"chex224"}
    assert set(store.source[pools.unlabelled_segmentation]) == {"jsrt"}


def test_shared_unlabelled_images_serve_both_tasks(store):
    pools = pools_of(store, 4, 2, shared=True)
    everything = all_rows(pools)
    assert set(pools.unlabelled_classification) == everything - set(pools.labelled_classification)
    assert set(pools.unlabelled_segmentation) == everything - set(pools.labelled_segmentation)


def test_the_seed_moves_the_labels_and_nobody_between_the_splits(store):
    one, other = (pools_of(store, 6, 3, seed=seed) for seed in (0, 1))
    assert set(one.labelled_classification) != set(other.labelled_classification)
    assert set(one.labelled_segmentation) != set(other.labelled_segmentation)
    assert all_rows(one) == all_rows(other)


@pytest.mark.parametrize("budget", [{"labels": 28}, {"masks": 10}])
def test_a_budget_above_what_there_is_is_refused(store, budget):
    with pytest.raises(ManifestError) as caught:
        pools_of(store, **budget)
    assert caught.value.reason == "budget_too_large"


@pytest.mark.parametrize("missing", ["chex224", "cxr/manifest.csv"])
def test_a_folder_without_a_part_of_the_data_is_refused_with_the_part(data, tmp_path, missing):
    folder = copy_of(data, tmp_path / "data")
    (folder / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match=f"{missing}.*--data or MULTIMIX_DATA") as caught:
        paper_store(folder, cache=tmp_path / "cache", image_size=SIDE)
    assert caught.value.reason == "experiment_data"


@pytest.mark.parametrize("names", [[], ["child-7.jpeg"]])
def test_files_that_name_no_patient_are_refused(tmp_path, names):
    (tmp_path / "chex224").mkdir()
    write_chex(tmp_path, {"train": {"NORMAL": names}})
    with pytest.raises(ManifestError, match="chex224") as caught:
        list(sources._chex(tmp_path))
    assert caught.value.reason == "experiment_data"


@pytest.mark.data
def test_the_real_sets_have_the_sizes_of_the_paper(real_data, tmp_path):
    store = paper_store(real_data, cache=tmp_path, image_size=32)
    sets = {(each.name, each.split): each.rows for each in scored_sets(store)}
    assert len(sets["chex224", "test"]) == 624
    masked = {name: int((store.mask_row[sets[name, "test"]] >= 0).sum()) for name in ("jsrt", "montgomery")}
    assert masked == {"jsrt": 123, "montgomery": 111}
    assert len(pools_of(store).labelled_segmentation) == 111
