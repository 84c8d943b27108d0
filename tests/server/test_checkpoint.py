import resource

import numpy as np
import pytest
from fake_sites import card, weights

from multimix.errors import CheckpointError, InputError
from server.checkpoint import FILE, JobState, read_checkpoint, write_checkpoint
from server.results import RoundResult, SiteRound

CONFIG, OTHER_CONFIG = "c" * 64, "d" * 64


def _state(rounds=2):
    record = {"seconds": 1.5, "sites": {"jsrt": SiteRound(state="accepted", losses={"total": 0.25}, steps=3)}}
    return JobState(
        job_id="job-1",
        config_sha256=CONFIG,
        round=rounds,
        cards={"jsrt": card("jsrt")},
        mask_convention="behind_heart",
        rounds=tuple(RoundResult(round=n, **record) for n in range(1, rounds + 1)),
        local_only={"jsrt": {"dice": 0.8, "auroc": None}},
        started="2026-11-22T09:14:03+00:00",
        seconds=3.0,
    )


def _reason(folder, config_sha256=CONFIG):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder, config_sha256=config_sha256)
    return caught.value.reason


@pytest.fixture
def saved(tmp_path):
    write_checkpoint(tmp_path, _state(), weights(0.1))
    return tmp_path


def test_state_and_weights_come_back_as_they_were(tmp_path):
    kept = weights(0.1)
    kept["decoder.c"][:] = [-0.0, 1e-45, 3e38]
    write_checkpoint(tmp_path, _state(), kept)
    state, back = read_checkpoint(tmp_path, config_sha256=CONFIG)
    assert state == _state()
    assert {n: (v.dtype, v.shape, v.tobytes()) for n, v in back.items()} == {
        n: (v.dtype, v.shape, v.tobytes()) for n, v in kept.items()
    }


def test_a_view_of_other_memory_comes_back_with_its_values(tmp_path):
    transposed = {"encoder.a": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_checkpoint(tmp_path, _state(), transposed)
    np.testing.assert_array_equal(
        read_checkpoint(tmp_path, config_sha256=CONFIG)[1]["encoder.a"], transposed["encoder.a"]
    )


def test_a_folder_without_checkpoint_says_that_there_is_none(tmp_path):
    assert _reason(tmp_path) == "checkpoint_missing"


def test_a_checkpoint_cut_short_anywhere_is_damaged(saved):
    content = (saved / FILE).read_bytes()
    lengths = [*range(0, len(content), 97), len(content) - 1]
    assert len(lengths) > 10
    for length in lengths:
        (saved / FILE).write_bytes(content[:length])
        assert _reason(saved) == "checkpoint_damaged", length


def test_a_long_checkpoint_cut_at_every_997th_byte_is_damaged(tmp_path):
    write_checkpoint(tmp_path, _state(), {"encoder.a": np.arange(20_000, dtype=np.float32)})
    content = (tmp_path / FILE).read_bytes()
    for length in range(0, len(content), 997):
        (tmp_path / FILE).write_bytes(content[:length])
        assert _reason(tmp_path) == "checkpoint_damaged", length


def test_a_checkpoint_with_one_flipped_bit_anywhere_is_damaged(saved):
    content = (saved / FILE).read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 7)
        (saved / FILE).write_bytes(flipped)
        try:
            state, back = read_checkpoint(saved, config_sha256=CONFIG)
        except CheckpointError as error:
            assert error.reason == "checkpoint_damaged", place
        else:  # a bit without meaning: the padding after the header
            assert (state, back["encoder.a"].tobytes()) == (_state(), weights(0.1)["encoder.a"].tobytes()), place


def test_a_checkpoint_with_bytes_after_its_end_is_damaged(saved):
    (saved / FILE).write_bytes((saved / FILE).read_bytes() + b"more")
    assert _reason(saved) == "checkpoint_damaged"


def test_a_checkpoint_of_another_configuration_is_refused_by_job(saved):
    with pytest.raises(CheckpointError, match="job-1 with another configuration") as caught:
        read_checkpoint(saved, config_sha256=OTHER_CONFIG)
    assert caught.value.reason == "checkpoint_of_another_job"


def test_weights_of_another_round_beside_the_state_are_damage(saved, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(saved / FILE, framework="numpy") as file:
        metadata = file.metadata()
    save_file(weights(0.2), saved / FILE, metadata=metadata)
    assert _reason(saved) == "checkpoint_damaged"


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(saved):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"encoder.a": np.zeros(100_000, np.float32)}  # 400 kB into a disk of 100 kB
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(InputError, match="Cannot write") as caught:
            write_checkpoint(saved, _state(3), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.reason == "unwritable-file"
    assert read_checkpoint(saved, config_sha256=CONFIG)[0] == _state()
    assert [path.name for path in saved.iterdir()] == [FILE]
