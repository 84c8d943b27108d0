"""Records: what a crash leaves behind the valid ones is cut off, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.intake.records import Records

LENGTH = 4


def records(path, count=0):
    return Records(path, record_bytes=LENGTH, count=count)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "images.u8"


def test_only_this_user_can_read_the_file(path):
    with records(path):
        assert path.stat().st_mode & 0o777 == 0o600


@given(written=st.lists(st.binary(min_size=LENGTH, max_size=LENGTH), max_size=8), data=st.data())
def test_the_valid_records_survive_and_the_others_are_gone(tmp_path_factory, written, data):
    path = tmp_path_factory.mktemp("records") / "images.u8"
    valid = data.draw(st.integers(0, len(written)))
    torn = data.draw(st.binary(max_size=LENGTH - 1))
    with records(path) as file:
        assert [file.append(record) for record in written] == list(range(len(written)))
    with path.open("ab") as end:
        end.write(torn)
    with records(path, valid) as file:
        assert path.stat().st_size == valid * LENGTH
        assert [file.read(number) for number in range(valid)] == written[:valid]
        assert file.append(b"next") == valid
        assert file.read(valid) == b"next"


def test_a_file_shorter_than_its_count_is_refused(path):
    path.write_bytes(bytes(2 * LENGTH - 1))
    with pytest.raises(ValueError, match="7 bytes for 2 records of 4"):
        records(path, 2)
    assert path.stat().st_size == 2 * LENGTH - 1


@pytest.mark.parametrize("record", [b"", b"abc", b"abcde"])
def test_a_record_of_another_length_is_refused(path, record):
    with records(path) as file:
        with pytest.raises(ValueError, match=f"{len(record)} bytes in a file of 4"):
            file.append(record)
        assert file.count == 0


@pytest.mark.parametrize("number", [-1, 1])
def test_a_record_that_is_not_there_is_not_read(path, number):
    with records(path) as file:
        file.append(b"abcd")
        with pytest.raises(IndexError):
            file.read(number)
