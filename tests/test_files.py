import pytest

from multimix.files import write_atomically


def test_data_is_written_into_folders_that_do_not_exist_yet(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_file_has_the_mode_asked_for(tmp_path, mode):
    path = tmp_path / "file"
    write_atomically(path, b"new", mode=mode)
    assert path.stat().st_mode & 0o777 == mode


def test_only_the_owner_may_read_it_unless_said_otherwise(tmp_path):
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode & 0o077 == 0


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text is no bytes")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_failure_while_renaming_leaves_the_old_place_and_nothing_else(tmp_path):
    (tmp_path / "file").mkdir()  # a folder is in the way
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "file", b"new")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert list((tmp_path / "file").iterdir()) == []
