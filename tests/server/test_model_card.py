import hashlib
import json

from sample_results import EXCLUDES_HEART, sample_results

from server.model_card import limitations, model_card, write_model_card
from server.results import SiteCounts


def _card(results):
    return model_card(results, parameters=1_965_173, data_licences=("CC BY 4.0", "NLM public"))


def _with_site(results, name, **fields):
    sites = {**results.sites, name: results.sites[name].model_copy(update=fields)}
    return results.model_copy(update={"sites": sites})


def test_the_card_says_what_the_model_is_not_for():
    assert "Research only. Not a medical device" in _card(sample_results()).intended_use


def test_the_card_carries_data_metrics_licences_and_privacy(tmp_path):
    results = sample_results()
    card = json.loads(write_model_card(_card(results), tmp_path).read_text())
    assert card["parameters"] == 1_965_173
    assert card["data"]["montgomery"]["role"] == "held-out"
    assert card["data"]["jsrt"]["mask_conventions"] == [EXCLUDES_HEART]
    assert card["site_metrics"]["kermany"]["auroc"] == 0.921
    assert card["data_licences"] == ["CC BY 4.0", "NLM public"]
    assert "epsilon = infinity" in card["privacy"]


def test_the_configuration_hash_ignores_the_order_of_keys_and_nothing_else():
    results = sample_results()
    turned = results.model_copy(update={"config": dict(reversed(results.config.items()))})
    other = results.model_copy(update={"config": {**results.config, "seed": 18}})
    assert _card(turned).config_sha256 == _card(results).config_sha256
    assert _card(other).config_sha256 != _card(results).config_sha256


def test_the_configuration_hash_is_the_sha256_of_plain_json():
    results = sample_results().model_copy(update={"config": {"b": True, "a": 1}})
    assert _card(results).config_sha256 == hashlib.sha256(b'{"a":1,"b":true}').hexdigest()


def test_one_class_sites_are_named_and_others_are_not():
    text = next(note for note in limitations(sample_results()) if note.startswith("One class"))
    assert "jsrt, shenzhen, cohen and montgomery" in text
    assert "kermany" not in text


def test_confounding_of_label_and_source_is_stated_with_its_range():
    text = next(note for note in limitations(sample_results()) if "confounded" in note)
    assert "0%" in text
    assert "96%" in text  # cohen: 130 of 136


def test_equal_shares_of_pneumonia_are_not_called_confounded():
    results = sample_results()
    balanced = SiteCounts(images=9, patients=9, normal_patients=4, pneumonia_patients=4)
    for name in results.sites:
        results = _with_site(results, name, counts=balanced)
    assert not any("confounded" in note for note in limitations(results))


def test_a_collapsed_classifier_is_named():
    results = sample_results()
    metrics = {**results.sites["nih14"].metrics, "score_std": 0.001}
    notes = limitations(_with_site(results, "nih14", metrics=metrics))
    assert any("Scores barely vary at nih14" in note for note in notes)


def test_phantoms_and_an_unfinished_run_come_first():
    notes = limitations(sample_results(synthetic=True, status="stopped", rounds=7))
    assert "synthetic phantoms" in notes[0]
    assert notes[1] == "Stopped early: 7 of 12 rounds are done."
