"""All images, labels and masks in one place: what the federation is compared with."""

from dataclasses import fields

import numpy as np
import pytest

from multimix.data.sampling import Pools, patients, union
from server.results import read_results
from sim.experiments.case import case_name
from sim.experiments.federated import RUN, sets_of
from sim.experiments.record import SCORES
from sim.experiments.scores import ScoreFile
from sim.experiments.suites import cases
from sim.experiments.work import Place, do
from sim.run import hospitals_of

CASES = {case_name(case): case for case in cases("federated", "smoke")}
POOLED, FEDAVG = CASES["pooled_without-montgomery_s0"], CASES["fedavg_without-montgomery_s0"]


@pytest.fixture(scope="module")
def place(data, cache, tmp_path_factory):
    place = Place(data=data, out=tmp_path_factory.mktemp("pooled"), cache=cache)
    do(POOLED, place)
    return place


def hospitals(place, case):
    return {each.name: each for each in hospitals_of(place.config(case))}


def test_one_site_trains_with_what_all_hospitals_that_train_have(place):
    store, convention = place.store(POOLED), POOLED.config.mask_convention
    everyone = hospitals(place, FEDAVG)
    trainers = [each for each in everyone.values() if each.role == "train"]
    assert len(trainers) == 5
    expected = union([each.pools(store, convention) for each in trainers])
    pooled = hospitals(place, POOLED)
    assert {name: each.role for name, each in pooled.items()} == {"montgomery": "held-out", "pooled": "train"}
    found = pooled["pooled"].pools(store, convention)
    for pool in fields(Pools):
        rows = getattr(found, pool.name)
        assert len(rows)
        assert rows.tolist() == getattr(expected, pool.name).tolist()
        assert "montgomery" not in store.source[rows]
    # Four labels each of kermany and nih14, two masks each of jsrt and shenzhen.
    assert (len(found.labelled_classification), len(found.labelled_segmentation)) == (8, 4)


def test_in_the_run_the_pooled_site_alone_was_trained_and_with_those_patients(place):
    results, store = read_results(place.folder(POOLED) / RUN), place.store(POOLED)
    assert (results.status, len(results.rounds)) == ("finished", POOLED.config.rounds)
    pools = hospitals(place, POOLED)["pooled"].pools(store, POOLED.config.mask_convention)
    for each in results.rounds:
        assert {name: site.state for name, site in each.sites.items()} == {"pooled": "accepted"}
        # A step draws ten masks, so all four teach, two of jsrt and two of shenzhen.
        assert each.sites["pooled"].teachers["decoder"].labelled_patients == 4
    counts = results.sites["pooled"].counts
    assert counts.normal_patients + counts.pneumonia_patients == patients(store, pools.labelled_classification)
    assert counts.masked_patients == patients(store, pools.labelled_segmentation)


def test_the_hospital_held_out_is_scored_and_never_trained_on(place):
    results = read_results(place.folder(POOLED) / RUN)
    assert (results.sites["montgomery"].role, results.sites["montgomery"].counts.masked_patients) == ("held-out", 0)
    assert results.sites["montgomery"].metrics["dice"] is not None


def test_it_is_scored_on_the_images_of_the_federation_s_sets(place):
    sets = sets_of(hospitals_of(place.config(FEDAVG)), place.store(FEDAVG))
    expected = {f"{each.name}/{each.split}": each.rows.tolist() for each in sets}
    found = ScoreFile.load(place.folder(POOLED) / SCORES).scores
    assert {name: scores.row.tolist() for name, scores in found.items()} == expected
    assert place.store(POOLED).fingerprint == place.store(FEDAVG).fingerprint


def test_no_image_that_trained_is_one_that_is_scored(place):
    store = place.store(POOLED)
    pools = hospitals(place, POOLED)["pooled"].pools(store, POOLED.config.mask_convention)
    trained = np.unique(np.concatenate([getattr(pools, pool.name) for pool in fields(Pools)]))
    for name, scores in ScoreFile.load(place.folder(POOLED) / SCORES).scores.items():
        assert not set(store.patient[trained]) & set(scores.patient), name
