"""The page says everything that was found, gravest first, in words that promise no more than the figures do."""

import math
import re
from html.parser import HTMLParser

import pytest

from multimix.audit.evidence import words
from multimix.audit.evidence.page import as_html
from multimix.audit.evidence.sections import sections_of
from multimix.audit.evidence.words import can_rely, cannot_rely
from multimix.contract.signing import public_text
from multimix.privacy.ledger import create_ledger, open_ledger
from multimix.privacy.officer import decide
from tests.audit import sample_evidence as audit
from tests.audit.ledger_attacks import OTHER, big_ledger, written
from tests.privacy import sample_ledger as sample

RAW, WHOLE = audit.whole()
PAGE = as_html(WHOLE)
NASTY = '</td><script>alert(1)</script><img src="https://e.vil/x.png" onerror="x">'


class Tags(HTMLParser):
    """Collects tags, unbalanced ones and attributes; text without tags."""

    VOID = frozenset({"meta", "line", "rect", "path", "br"})

    def __init__(self, page):
        super().__init__()
        self.open, self.faults, self.attributes, self.tags, self.words = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def sentences(raw, **changes):
    return " ".join(can_rely(audit.evidence_of(raw, **changes)))


def test_the_page_is_whole_and_fetches_nothing():
    tags = Tags(PAGE)
    assert (tags.open, tags.faults) == ([], [])
    assert not {"script", "link", "img", "iframe", "object", "base", "form", "a"} & set(tags.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in tags.attributes}
    assert not re.search(r"https?://|@import|url\((?!#hatch\))", PAGE)
    assert "default-src 'none'" in PAGE


def test_the_same_evidence_makes_the_same_page():
    assert as_html(WHOLE) == PAGE


@pytest.mark.parametrize("hostile", ["tuning", "site", "software", "note"])
def test_hostile_text_is_shown_and_does_nothing(hostile):
    raw = written([*audit.bodies(), sample.tuning(NASTY)])
    evidence = audit.evidence_of(raw, membership=(audit.membership(),))
    if hostile == "site":
        seen = evidence.verification.model_copy(update={"site": NASTY})
        evidence = evidence.model_copy(update={"verification": seen})
    elif hostile == "software":
        evidence = evidence.model_copy(update={"software": {"torch": NASTY}})
    elif hostile == "note":
        result = audit.membership()
        noted = result.model_copy(update={"attacks": (result.attacks[0].model_copy(update={"note": NASTY}),)})
        evidence = evidence.model_copy(update={"membership": (noted,)})
    tags = Tags(as_html(evidence))
    assert not {"script", "img"} & set(tags.tags)
    assert "alert(1)" in tags.text


def test_hostile_text_of_the_officer_is_escaped(tmp_path):
    create_ledger(tmp_path / "ledger", site="north", population="adults")
    with open_ledger(tmp_path / "ledger", site="north", population="adults") as ledger:
        decide(ledger, "note", NASTY, OTHER, officer_key=public_text(OTHER))
        keys = audit.KEYS.model_copy(update={"ledger": ledger.public_key, "officer": public_text(OTHER)})
    page = as_html(audit.evidence_of((tmp_path / "ledger" / "ledger.jsonl").read_bytes(), keys=keys))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    "expected",
    [
        "Consistent",
        "no proof that the claim is true",
        "5 entries of the ledger",
        "EXACT figures about real patients",
        "not differentially private",
        "the same release came out",
        "the noise is as strong as claimed",
        "each with 95 % confidence by itself",
        "however much the training leaked",
        "allow non private",
        sample.sha("method"),
        WHOLE.verification.head.sha256,
        WHOLE.keys.auditor,
        WHOLE.policy_sha256,
        "torch",
        *words.CANNOT_SHOW,
    ],
)
def test_what_was_found_stands_on_the_page(expected):
    assert expected in Tags(PAGE).text


@pytest.mark.parametrize("word", ["safe", "proved private", "proven", "secure", "anonym"])
def test_the_page_never_promises(word):
    assert not re.search(rf"\b{word}", Tags(PAGE).text, re.IGNORECASE)


def test_epsilon_is_said_in_plain_words_with_its_odds():
    told = sentences(RAW)
    epsilon = math.ceil(audit.price_of(2 * audit.STEPS) * 1000) / 1000
    times = math.ceil(math.exp(epsilon) * 100) / 100
    assert f"at most e^{epsilon} = {times:.2f} times as likely" in told
    assert f"plus a chance of {audit.DELTA}" in told
    assert f"at most {math.ceil(100 * math.exp(epsilon) / (1 + math.exp(epsilon)))} % sure" in told


@pytest.mark.parametrize(("epsilon", "strength"), [(0.9, "tight"), (1.7, "moderate"), (3.5, "weak"), (8.0, "weak")])
def test_the_strength_of_the_limit_is_named(epsilon, strength):
    claims = dict.fromkeys(("epsilon_run", "epsilon_lifetime", "epsilon_private", "prv", "pld"), epsilon)
    dp = sample.patient_privacy(epsilon=9.0)
    body = audit.reservation(steps=1, total_steps=10, dp=dp, limit_run=9.0, limit_lifetime=9.0, **claims)
    assert f"this is a {strength} limit" in sentences(written([body]))


def test_training_without_privacy_leaves_nothing_to_rely_on_and_says_infinity():
    evidence = audit.evidence_of(written([*audit.bodies(), sample.non_private()]))
    (only,) = can_rely(evidence)
    assert only.startswith("Nothing: epsilon is infinity")
    assert any("Run plain trained 1 time without differential privacy" in text for text in cannot_rely(evidence))
    text = Tags(as_html(evidence)).text
    assert "Epsilon is infinity: 1 training ran without differential privacy." in text
    assert "infinity (with noise: " in text
    assert "without noise: infinite from here on" in text


def test_known_noise_leaves_nothing_to_rely_on():
    evidence = audit.evidence_of(written([audit.reservation(seeded=True)]))
    (only,) = can_rely(evidence)
    assert only.startswith("Nothing: epsilon is infinity: noise was drawn from a known seed")
    assert "infinity: known noise" in as_html(evidence)


def test_contradicted_evidence_leaves_nothing_to_rely_on():
    evidence = audit.evidence_of(RAW, replays=(audit.replayed(verdict="differs", reasons=("weights_differ",)),))
    assert can_rely(evidence) == ("Nothing: the evidence contradicts the claim.",)


def test_a_delta_of_one_in_n_leaves_nothing_to_rely_on():
    _, evidence = audit.whole(statement=audit.statement_of(RAW, declared_patients=1000))
    assert "hollow" in can_rely(evidence)[0]
    assert len(can_rely(evidence)) == 1


def test_six_to_ten_sentences_stand_on_each_side_of_an_ordinary_ledger():
    evidence = audit.whole(raw=written(audit.everything()), statement=None)[1]
    assert 6 <= len(can_rely(evidence)) <= 10
    assert 6 <= len(cannot_rely(evidence)) <= 10


def test_evaluations_are_named_where_there_were_some():
    with_some, without = (audit.evidence_of(written(bodies)) for bodies in (audit.everything(), audit.bodies()))
    assert any("1 evaluation released exact figures" in text for text in cannot_rely(with_some))
    assert any("No evaluation of them is entered" in text for text in cannot_rely(without))


def test_the_heads_are_claimed_only_where_the_coordinator_was_known():
    unknown = audit.KEYS.model_copy(update={"coordinator": None})
    texts = [" ".join(can_rely(audit.whole(**changes)[1])) for changes in ({}, {"heads": None}, {"keys": unknown})]
    assert ["the coordinator countersigned them" in text for text in texts] == [True, False, False]


def test_violations_stand_before_notices_with_their_entries():
    evidence = audit.evidence_of(written([*audit.bodies(), sample.commit(3), sample.non_private()]))
    section = next(each for each in sections_of(evidence) if each.heading == "The ledger, verified")
    rows = section.tables[0].rows
    kinds = [row[0] for row in rows]
    assert kinds == sorted(kinds, reverse=True)
    assert rows[0][1:3] == ("commit again", "5")
    assert section.tables[0].bad == {0}


def test_a_long_table_is_folded_and_says_where_the_rest_is():
    raw, key = big_ledger(501)
    page = as_html(audit.evidence_of(raw, keys=audit.KEYS.model_copy(update={"ledger": key})))
    assert "200 of 250 rows are shown, faults first; the others are in evidence.json." in page
    assert "<summary>200 rows</summary>" in page


def test_an_infinite_or_missing_measurement_is_shown():
    neighbours = audit.empirical().neighbours.model_copy(update={"leakage": math.nan, "flagged": True})
    page = as_html(audit.evidence_of(RAW, empirical=(audit.empirical(neighbours=neighbours),)))
    assert "nan" in page
    assert "FLAGGED" in page


def test_figures_of_neighbours_stand_there_only_where_they_are_faults():
    near = audit.empirical().neighbours.model_copy(update={"sensitivity": 0.7312345, "leakage": 3.21e-13})
    far = near.model_copy(update={"sensitivity": 1.25, "flagged": True})
    pages = [as_html(audit.whole(empirical=(audit.empirical(neighbours=each),))[1]) for each in (near, far)]
    assert ["within the bound</td>" in page for page in pages] == [True, True]
    assert ["1.250000" in page for page in pages] == [False, True]
    assert not any("0.731" in page or "3.2e-13" in page for page in pages)


def test_a_flag_that_was_turned_stands_on_the_page():
    hidden = audit.measured(p_value=1e-9)
    assert "FLAGGED" in as_html(audit.whole(empirical=(audit.empirical(tests=(hidden,)),))[1])


def test_a_flag_of_the_gaussian_bound_says_on_the_page_what_it_presumes():
    flagged = audit.empirical(bounds=(audit.bound("fdp_gaussian", 5.0, flagged=True),))
    text = Tags(as_html(audit.whole(empirical=(flagged,))[1])).text
    assert "FLAGGED, if the leak is like a Gaussian's" in text


def test_a_test_without_words_stands_there_by_its_name():
    text = Tags(as_html(audit.whole(empirical=(audit.empirical(tests=(audit.measured("new_test"),)),))[1])).text
    assert "new test" in text


def test_the_same_weights_are_counted_by_entry_with_their_difference_and_tolerance():
    replays = (audit.replayed(difference=2e-4), audit.replayed(difference=1e-5), audit.replayed(3, 2))
    for chosen, told in ((replays, "2 rounds were"), (replays[:2], "1 round was")):
        text = " ".join(can_rely(audit.whole(replays=chosen)[1]))
        assert f"{told} executed again, and the same weights came out: at most 0.0002 of an update apart" in text
        assert "where up to 0.001 was allowed" in text


def test_a_ledger_without_training_has_a_page():
    text = Tags(as_html(audit.evidence_of(written([sample.refusal()])))).text
    assert "Nothing was claimed" in text
    assert "There is nothing to draw." in text


def test_an_unreadable_ledger_has_a_page():
    text = Tags(as_html(audit.evidence_of(b"nonsense\n"))).text
    assert "Contradicted" in text
    assert "not named" in text
