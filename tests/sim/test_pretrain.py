import json

import pytest
import torch
from typer.testing import CliRunner

from multimix.contract.run_config import RunConfig
from multimix.errors import RunConfigError
from multimix.weights import load_model
from sim.cli import app
from sim.pretrain import pretrain
from sim.run import hospitals_of

TINY = {
    "image_size": 32,
    "width": 2,
    "rounds": 1,
    "local_steps": 1,
    "images_per_group": 1,
    "phantom_hospitals": 2,
    "phantom_patients": 12,
    "preset": "private",
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    config = RunConfig.model_validate({**TINY, "cache": str(folder / "cache"), "out": str(folder / "public")})
    return config, pretrain(config)


def test_the_features_of_the_phantoms_are_standardised(pretrained):
    config, path = pretrained
    network, hospital = load_model(path), hospitals_of(config)[0]
    with torch.no_grad():
        features = network.classifier.features(network.encode(hospital.store().load_images(hospital.rows)))
    scaled = (features - network.classifier.standard_mean) * network.classifier.standard_scale
    assert scaled.mean().abs() < 0.2
    assert 0.5 < scaled.std() < 1.5
    assert network.classifier.standard_scale.min() != 1.0


@pytest.mark.parametrize("field", [{"data": "somewhere"}, {"dp": "patient"}])
def test_pretraining_touches_no_patient(field):
    with pytest.raises(RunConfigError) as error:
        pretrain(RunConfig.model_validate({**TINY, **field}))
    assert error.value.reason == "pretrain_data"


def keys(config, *names):
    return [text for name in names for text in ("-c", f"{name}={getattr(config, name.replace('-', '_'))}")]


def test_a_model_is_scored_at_every_hospital(pretrained):
    config, path = pretrained
    chosen = keys(config, "image-size", "phantom-hospitals", "phantom-patients", "cache")
    result = CliRunner().invoke(app, ["score", str(path), "--json", *chosen])
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert sorted(figures) == ["phantom-a", "phantom-b"]
    assert all(0.0 <= site["dice"] <= 1.0 for site in figures.values())
    table = CliRunner().invoke(app, ["score", str(path), *chosen])
    assert "phantom-b" in table.stdout


def test_a_model_of_another_image_size_is_refused(pretrained):
    config, path = pretrained
    result = CliRunner().invoke(app, ["score", str(path), *keys(config, "cache"), "-c", "image-size=64"])
    assert result.exit_code == 2
    assert "image-size" in result.output
