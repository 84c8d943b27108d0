import pytest
from fake_sites import card, dice_of, tiny_run

from multimix.contract.messages import EvaluateReport, Picture
from server.checkpoint import JobState
from server.publish import assemble, publish, write_pictures
from server.results import RoundResult, SiteRound, read_results
from server.rounds import Scores

PNG = b"\x89PNG\r\n\x1a\n"
HEART, EXPERT = "behind_heart", "expert"


def _state(*cards, **fields):
    known = cards or (card("a"), card("unseen", role="held-out"))
    return JobState.model_validate(
        {
            "job_id": "job-1",
            "config_sha256": "c" * 64,
            "round": 1,
            "cards": {each.site: each for each in known},
            "mask_convention": HEART,
            "started": "2026-11-22T09:14:03+00:00",
        }
        | fields
    )


def _scores(**statistics):
    def report(site, figures):
        return EvaluateReport(
            site=site, job_id="job-1", round=1, plan_sha256="a" * 64, split="test", statistics=figures
        )

    return Scores({site: report(site, figures) for site, figures in statistics.items()}, {}, {})


def test_the_timing_sums_the_parts_of_the_rounds_and_leaves_out_what_sites_did_meanwhile():
    site = SiteRound(state="accepted", seconds={"step": 100.0, "total": 110.0})
    rounds = [
        RoundResult(round=n, seconds=9.0, parts={"sites": 7.0, "report": 2.0}, sites={"a": site, "b": site})
        for n in (1, 2)
    ]
    results = assemble(tiny_run(), _state(rounds=rounds), status="running")
    assert results.timing == {"sites": 14.0, "report": 4.0}
    assert sum(results.timing.values()) == sum(r.seconds for r in results.rounds)


@pytest.mark.parametrize(
    ("synthetic", "banner"), [((True, True), True), ((True, False), True), ((False, False), False)]
)
def test_one_synthetic_site_is_enough_to_call_the_run_synthetic(synthetic, banner):
    cards = [card(name, synthetic=value) for name, value in zip("ab", synthetic, strict=True)]
    assert assemble(tiny_run(), _state(*cards), status="running").synthetic is banner


def test_counts_are_patients_of_the_learned_convention_and_of_none_at_a_held_out_site():
    masked = card("a", conventions=(HEART, EXPERT), masked_patients={HEART: 15, EXPERT: 4})
    sites = assemble(tiny_run(), _state(masked, card("unseen", role="held-out")), status="running").sites
    assert sites["a"].counts.model_dump() == {
        "images": 60,
        "patients": 50,
        "normal_patients": 10,
        "pneumonia_patients": 10,
        "masked_patients": 15,
        "unlabelled_patients": 20,  # 40 train, 20 have a label
    }
    held_out = sites["unseen"].counts.model_dump()
    assert held_out.pop("images") == 60
    assert held_out.pop("patients") == 50
    assert set(held_out.values()) == {0}


def test_a_run_in_progress_has_no_figures_and_no_end():
    results = assemble(tiny_run(), _state(), status="running")
    assert results.finished is None
    assert results.sites["a"].metrics == results.overall.metrics == {}


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_a_run_that_ended_says_when(status):
    results = assemble(tiny_run(), _state(), status=status)
    assert results.status == status
    assert results.finished > results.started


def test_figures_stand_under_their_sites_and_the_overall_is_of_all_images():
    results = assemble(
        tiny_run(), _state(), status="finished", scores=_scores(a=dice_of(0.9, images=6), unseen=dice_of(0.6, images=3))
    )
    assert results.sites["a"].metrics["dice"] == pytest.approx(0.9)
    assert results.sites["unseen"].role == "held-out"
    assert results.overall.metrics["dice"] == pytest.approx(0.8)  # (6 x 0.9 + 3 x 0.6) / 9
    assert results.overall.metrics["masked_images"] == 9


def test_each_convention_is_scored_over_the_sites_that_have_it_and_says_whether_it_was_learned():
    scores = _scores(a=dice_of(0.9), unseen=dice_of(0.5, convention=EXPERT))
    conventions = assemble(tiny_run(), _state(), status="finished", scores=scores).conventions
    assert conventions[HEART].metrics["dice"] == pytest.approx(0.9)
    assert (conventions[HEART].learned, conventions[HEART].sites) == (True, ("a",))
    assert conventions[EXPERT].metrics["dice"] == pytest.approx(0.5)
    assert (conventions[EXPERT].learned, conventions[EXPERT].sites) == (False, ("unseen",))
    assert "accuracy" not in conventions[HEART].metrics


def test_local_figures_stand_beside_the_federated_ones():
    results = assemble(tiny_run(), _state(local_only={"a": {"dice": 0.5, "auroc": None}}), status="finished")
    assert results.sites["a"].local_only == {"dice": 0.5, "auroc": None}
    assert results.sites["unseen"].local_only is None


def test_no_path_of_this_machine_is_published():
    config = tiny_run(out="/home/somebody/run", cache="/home/somebody/cache", data="/home/somebody/radiographs")
    published = assemble(config, _state(), status="running").config
    assert published["data"] == "radiographs"
    assert not [key for key, value in published.items() if "somebody" in str(value)]


def test_a_run_without_differential_privacy_says_that_epsilon_is_infinite():
    assert "epsilon = infinity" in assemble(tiny_run(), _state(), status="running").privacy


def test_pictures_are_numbered_by_site(tmp_path):
    scores = _scores()
    scores.pictures.update({"b": (Picture(caption="x", png=PNG + b"1"), Picture(caption="y", png=PNG + b"2"))})
    pictures = write_pictures(tmp_path, scores)
    assert [(p.site, p.caption, p.file) for p in pictures] == [
        ("b", "x", "pictures/b-00.png"),
        ("b", "y", "pictures/b-01.png"),
    ]
    assert (tmp_path / "pictures/b-01.png").read_bytes() == PNG + b"2"


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"", PNG + bytes(50_000_000)])
def test_a_picture_that_is_no_png_of_a_reasonable_size_is_left_out(tmp_path, content):
    scores = _scores()
    scores.pictures.update({"b": (Picture(caption="x", png=content), Picture(caption="y", png=PNG))})
    assert [picture.caption for picture in write_pictures(tmp_path, scores)] == ["y"]
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_publishing_writes_the_figures_and_the_page(tmp_path):
    results = assemble(tiny_run(title="A title"), _state(), status="running")
    publish(results, tmp_path)
    assert read_results(tmp_path) == results
    assert "A title" in (tmp_path / "report.html").read_text()
