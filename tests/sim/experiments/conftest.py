import pytest
from experiment_fakes import SIDE, SOURCES, TEST, TRAIN, write_chex, write_cxr

from sim.experiments.sources import paper_store


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiographs")
    write_chex(folder, {"train": TRAIN, "test": TEST})
    write_cxr(folder, SOURCES)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="session")
def store(data, cache):
    return paper_store(data, cache=cache, image_size=SIDE)
