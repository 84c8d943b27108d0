"""Pseudonyms: keyed, separated by purpose, unambiguous, and a secret that nobody else can read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimix.data.pseudonyms import HEX_DIGITS, SECRET_BYTES, Pseudonyms, read_or_make_secret
from multimix.errors import SiteError

SECRET = b"secret of the test site, 32 byte"
SITE = Pseudonyms(SECRET)
parts = st.lists(st.text(max_size=6), max_size=4)


def test_a_pseudonym_is_the_hmac_of_rfc_2104_over_parts_with_their_lengths():
    import hashlib
    import hmac

    message = b"".join(len(part).to_bytes(8, "little") + part for part in (b"patient", b"", b"4711"))
    assert SITE.of("patient", "", "4711") == hmac.new(SECRET, message, hashlib.sha256).hexdigest()[:HEX_DIGITS]


@given(one=parts, other=parts)
def test_different_parts_give_different_pseudonyms_however_they_are_cut(one, other):
    assert (SITE.of("p", *one) == SITE.of("p", *other)) == (one == other)


@given(text=st.text(min_size=2, max_size=9), cut=st.integers(1, 8))
def test_moving_a_letter_from_one_part_to_the_next_gives_another(text, cut):
    cut = min(cut, len(text) - 1)
    assert len({SITE.of("p", text), SITE.of("p", text[:cut], text[cut:]), SITE.of("p" + text[:cut], text[cut:])}) == 3


def test_purposes_are_separated():
    assert len({SITE.of(purpose, "4711") for purpose in ("patient", "accession", "sop instance uid", "file")}) == 4


def test_another_secret_gives_other_pseudonyms_fractions_and_contents():
    other = Pseudonyms(SECRET[::-1])
    assert SITE.of("patient", "4711") != other.of("patient", "4711")
    assert SITE.fraction("split", "4711") != other.fraction("split", "4711")
    assert SITE.content(b"4711") != other.content(b"4711")


@given(one=st.lists(st.binary(max_size=6), max_size=3), other=st.lists(st.binary(max_size=6), max_size=3))
def test_contents_cannot_be_confused_by_concatenation(one, other):
    assert (SITE.content(*one) == SITE.content(*other)) == (one == other)


def test_any_text_has_a_pseudonym_even_half_a_surrogate():
    assert len(SITE.of("patient", "\udcff")) == HEX_DIGITS


@given(part=st.text(max_size=6))
def test_a_fraction_is_in_zero_to_one_and_repeats(part):
    assert 0 <= SITE.fraction("split", part) == Pseudonyms(SECRET).fraction("split", part) < 1


def test_even_the_greatest_hash_gives_a_fraction_below_one():
    class Greatest(Pseudonyms):
        def _digest(self, purpose, parts):
            return b"\xff" * 32

    assert Greatest(SECRET).fraction("split") < 1


def test_fractions_are_spread_evenly():
    values = [SITE.fraction("split", str(number)) for number in range(4000)]
    for quarter in range(4):
        inside = sum(quarter / 4 <= value < (quarter + 1) / 4 for value in values)
        assert abs(inside - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5  # five standard deviations


def test_the_secret_is_not_shown():
    assert SECRET.decode() not in repr(SITE) + str(SITE) + f"{SITE}"
    assert SECRET.hex() not in repr(SITE)


def test_an_empty_secret_is_refused():
    with pytest.raises(SiteError) as caught:
        Pseudonyms(b"")
    assert caught.value.reason == "pseudonym_key_invalid"


def test_a_new_secret_is_random_private_and_kept(tmp_path):
    first, second = (read_or_make_secret(tmp_path / name) for name in ("a", "b"))
    assert len(first) == len(second) == SECRET_BYTES
    assert first != second
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert read_or_make_secret(tmp_path / "a") == first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_may_touch_is_refused(tmp_path, mode):
    read_or_make_secret(tmp_path / "secret")
    (tmp_path / "secret").chmod(mode)
    assert refusal(tmp_path / "secret") == "secret_not_private"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_that_only_its_user_may_touch_is_read(tmp_path, mode):
    secret = read_or_make_secret(tmp_path / "secret")
    (tmp_path / "secret").chmod(mode)
    assert read_or_make_secret(tmp_path / "secret") == secret


@pytest.mark.parametrize("kept", [0, 1, SECRET_BYTES - 1])
def test_a_truncated_secret_is_refused_and_left_alone(tmp_path, kept):
    path = tmp_path / "secret"
    path.write_bytes(SECRET[:kept])
    path.chmod(0o600)
    assert refusal(path) == "secret_unusable"
    assert path.read_bytes() == SECRET[:kept]


def test_a_folder_in_the_place_of_the_secret_is_refused(tmp_path):
    (tmp_path / "secret").mkdir(mode=0o700)
    assert refusal(tmp_path / "secret") == "secret_unusable"


def refusal(path) -> str:
    with pytest.raises(SiteError) as caught:
        read_or_make_secret(path)
    assert str(path.parent) not in str(caught.value)
    assert SECRET.decode()[:8] not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.reason
