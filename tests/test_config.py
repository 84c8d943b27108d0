import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from multimix.config import MethodConfig, NetworkConfig, RowName, preset, row

ROWS = get_args(RowName)


@pytest.mark.parametrize("name", ["paper", "modern"])
def test_a_preset_survives_the_journey_as_json(name):
    method = preset(name, image_size=64, width=8)
    assert MethodConfig.model_validate_json(method.model_dump_json()) == method
    assert (method.network.image_size, method.network.width) == (64, 8)


def test_the_paper_preset_has_the_constants_of_the_paper():
    method = preset("paper")
    objective, views = method.objective, method.views
    assert objective.unlabelled_classification_weight == 0.25
    assert objective.confidence_threshold == 0.7
    assert (objective.segmentation_weight, objective.unlabelled_segmentation_weight) == (5.0, 0.01)
    assert (objective.dropout, objective.teacher) == (0.25, "student")
    assert (method.optimiser.learning_rate, method.optimiser.schedule) == (1e-4, "constant")
    assert (views.strong_operations, views.strong_magnitude) == (2, 10.0)
    assert (method.network.bridge, method.network.saliency_scale) == ("saliency", "raw")


# classification, segmentation, bridge, semi-supervised; table 1 of the paper and the controls of the bridge
EXPECTED = {
    "u-net": (False, True, "off", False),
    "enc": (True, False, "off", False),
    "enc-ssl": (True, False, "off", True),
    "umtl": (True, True, "off", False),
    "umtls": (True, True, "saliency", False),
    "multimix": (True, True, "saliency", True),
    "bridge-off": (True, True, "off", True),
    "zero-saliency": (True, True, "zero", True),
    "random-saliency": (True, True, "random", True),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("base", ["paper", "modern"])
def test_a_row_has_its_tasks_bridge_and_supervision(name, base):
    method = row(name, preset(base))
    network = method.network
    found = (
        network.classification,
        network.segmentation,
        network.bridge,
        method.objective.semi_supervised,
    )
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_changes_nothing_but_tasks_bridge_and_supervision(name):
    changed, before = row(name, preset("modern")).model_dump(), preset("modern").model_dump()
    for key in ("classification", "segmentation", "bridge"):
        changed["network"].pop(key), before["network"].pop(key)
    changed["objective"].pop("semi_supervised"), before["objective"].pop("semi_supervised")
    assert changed == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 16},
        {"image_size": 40},
        {"width": 1},
        {"colour": True},
        {"classification": False, "segmentation": False, "bridge": "off"},
        {"classification": False, "bridge": "zero"},
    ],
)
def test_a_network_that_cannot_be_built_is_refused(wrong):
    with pytest.raises(ValidationError):
        NetworkConfig.model_validate(wrong)


def test_a_configuration_cannot_be_changed_after_the_fact():
    with pytest.raises(ValidationError):
        preset("paper").network.width = 4


def test_the_configuration_imports_no_torch():
    code = "import sys, multimix.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
