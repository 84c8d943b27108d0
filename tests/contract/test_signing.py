"""Signed plans: only the coordinator's exact text is believed."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from multimix.config import MethodConfig
from multimix.contract.messages import LocalWork, RoundPlan, canonical_json, sha256_text
from multimix.contract.signing import SignedPlan, public_key, public_text, sign, simulation_key, verified
from multimix.errors import Refused

KEY = simulation_key(0)
PUBLIC = KEY.public_key()
PLAN = RoundPlan(
    job_id="job",
    round=3,
    kind="train",
    seed=1,
    method=MethodConfig(),
    work=LocalWork(steps=2, images_per_group=2),
    weights_sha256="0" * 64,
)


def signed_text(document: str, key: Ed25519PrivateKey = KEY) -> SignedPlan:
    """Sign any text at all, as a coordinator of another version might."""
    return SignedPlan(document, base64.b64encode(key.sign(document.encode())).decode())


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(canonical_json(PLAN)), **fields})


def refusal(signed: SignedPlan) -> Refused:
    with pytest.raises(Refused) as caught:
        verified(signed, PUBLIC)
    return caught.value


@given(round_number=st.integers(0, 10**6), seed=st.integers(0, 2**53))
def test_a_signed_plan_is_verified_as_itself(round_number, seed):
    plan = PLAN.model_copy(update={"round": round_number, "seed": seed})
    assert verified(sign(plan, KEY), PUBLIC) == plan


def test_a_signed_plan_is_named_by_the_hash_of_its_text():
    assert sign(PLAN, KEY).sha256 == sha256_text(canonical_json(PLAN))


def test_signing_is_deterministic_so_a_repeated_order_has_the_same_hash():
    assert sign(PLAN, KEY) == sign(PLAN.model_copy(), KEY)


def test_the_signature_of_another_key_is_refused():
    assert refusal(sign(PLAN, simulation_key(1))).reason == "plan_signature"


@given(position=st.integers(0, len(canonical_json(PLAN)) - 1), letter=st.characters(codec="utf-8"))
def test_every_altered_letter_of_the_plan_is_refused(position, letter):
    document = canonical_json(PLAN)
    altered = document[:position] + letter + document[position + 1 :]
    if altered != document:
        assert refusal(SignedPlan(altered, sign(PLAN, KEY).signature)).reason == "plan_signature"


def test_a_text_that_means_the_same_but_reads_differently_is_refused():
    signed = sign(PLAN, KEY)
    spaced = json.dumps(json.loads(signed.document))
    assert spaced != signed.document
    assert refusal(SignedPlan(spaced, signed.signature)).reason == "plan_signature"


@pytest.mark.parametrize("signature", ["", "no base64!", "AAAA", "é", "\ud800", base64.b64encode(bytes(64)).decode()])
def test_what_is_no_signature_is_refused(signature):
    assert refusal(SignedPlan(canonical_json(PLAN), signature)).reason == "plan_signature"


def test_a_plan_that_is_no_unicode_is_refused():
    assert refusal(SignedPlan("\ud800", sign(PLAN, KEY).signature)).reason == "plan_signature"


def test_a_plan_of_another_protocol_is_refused_with_both_numbers():
    refused = refusal(signed_text(changed(protocol=2)))
    assert (refused.reason, refused.detail) == ("protocol_unknown", "asked 2, spoken 1")


def test_a_later_protocol_is_named_as_the_reason_even_where_its_plan_has_new_fields():
    assert refusal(signed_text(changed(protocol=2, novelty=True))).reason == "protocol_unknown"


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        changed(surprise=1),
        changed(kind="delete"),
        changed(round=-1),
        changed(weights_sha256="0" * 63),
        changed(job_id="a b"),
        changed(dp={"epsilon": 1}),
        changed(protocol=None),
        "[" * 100_000,
    ],
    ids=[
        *("nothing", "cut", "null", "list", "empty", "extra key", "unknown kind", "negative round", "short hash"),
        *("job name", "unknown privacy", "no protocol", "deep"),
    ],
)
def test_a_malformed_plan_is_refused_even_when_signed(document):
    refused = refusal(signed_text(document))
    assert (refused.reason, refused.detail) == ("plan_malformed", "")


def test_a_refusal_carries_no_trace_of_what_went_wrong():
    refused = refusal(signed_text(changed(surprise="SENTINEL")))
    assert "SENTINEL" not in str(refused)
    assert refused.__cause__ is None
    assert refused.__suppress_context__


def test_a_public_key_survives_its_text():
    key = Ed25519PrivateKey.generate()
    assert public_key(public_text(key)) == key.public_key()


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", base64.b64encode(bytes(33)).decode()])
def test_a_text_that_is_no_key_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011  (cryptography and base64 word it differently)
        public_key(text)


def test_simulation_keys_are_functions_of_the_seed():
    assert public_text(simulation_key(5)) == public_text(simulation_key(5))
    assert public_text(simulation_key(5)) != public_text(simulation_key(6))
