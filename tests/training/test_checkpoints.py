import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from support.memory import measure_peak_bytes

from vecall.errors import TrainingError
from vecall.training.checkpoints import StreamedCheckpointIO, load_checkpoint, load_weights, save_checkpoint

TABLE_BYTES = 2**27
ROWS = TABLE_BYTES // (4 * 64)


def make_checkpoint(seed, rows=20):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 64, generator=generator)
    return {
        "epoch": seed,
        "state_dict": {"table": table, "scale": torch.tensor(0.5), "steps": torch.tensor(7)},
        "optimizer_states": [{"state": {0: {"exp_avg": table[:5] * 2, "step": torch.tensor(3.0)}}, "param_groups": []}],
        "callbacks": {"early": {"wait_count": 1, "best": torch.tensor(0.25)}},
    }


def assert_equal(actual, expected):
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(actual[key], value)
    elif isinstance(expected, list):
        for actual_value, value in zip(actual, expected, strict=True):
            assert_equal(actual_value, value)
    else:
        assert actual == expected


def run_in_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_saved_checkpoint_is_read_bit_by_bit(tmp_path):
    plugin, path = StreamedCheckpointIO(), tmp_path / "new" / "last.ckpt"
    plugin.save_checkpoint(make_checkpoint(1), str(path))
    assert_equal(plugin.load_checkpoint(str(path), weights_only=True), make_checkpoint(1))
    assert_equal(load_weights(path), make_checkpoint(1)["state_dict"])
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    plugin.remove_checkpoint(str(path))
    plugin.remove_checkpoint(str(path))
    assert not path.exists()


def test_lightnings_own_checkpoint_is_read(tmp_path):
    TorchCheckpointIO().save_checkpoint(make_checkpoint(1), tmp_path / "last.ckpt")
    assert_equal(load_checkpoint(tmp_path / "last.ckpt"), make_checkpoint(1))


def test_mapped_tensors_outlive_their_file_and_do_not_write_to_it(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make_checkpoint(1), path)
    mapped = load_weights(path)
    mapped["table"][0] = 9.0
    assert_equal(load_weights(path), make_checkpoint(1)["state_dict"])
    save_checkpoint(make_checkpoint(2), path)
    assert_equal(mapped["table"][1:], make_checkpoint(1)["state_dict"]["table"][1:])
    path.unlink()
    assert_equal(mapped["table"][1:], make_checkpoint(1)["state_dict"]["table"][1:])


@pytest.mark.parametrize("killed_in", ["os.fsync", "pathlib.Path.replace"])
def test_a_killed_save_leaves_the_previous_checkpoint_and_the_next_cleans_up(tmp_path, monkeypatch, killed_in):
    path = tmp_path / "best.ckpt"
    save_checkpoint(make_checkpoint(1), path)
    with monkeypatch.context() as patch:
        patch.setattr(killed_in, lambda *_: os._exit(9))
        assert run_in_child(lambda: save_checkpoint(make_checkpoint(2), path)) == 9
    assert len(list(tmp_path.iterdir())) == 2
    assert_equal(load_checkpoint(path), make_checkpoint(1))
    save_checkpoint(make_checkpoint(3), tmp_path / "last.ckpt")  # another file of the directory cleans up too
    assert {file.name for file in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.fixture
def small_files_only():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_error_is_a_training_error_and_leaves_the_previous_checkpoint(tmp_path, small_files_only):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make_checkpoint(1), path)
    with pytest.raises(TrainingError, match=rf"last.ckpt: the checkpoint cannot be written .*{os.strerror(27)}"):
        save_checkpoint(make_checkpoint(2, rows=1000), path)
    assert_equal(load_checkpoint(path), make_checkpoint(1))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_a_training_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: SIM115, PTH123
    with pytest.raises(TrainingError, match=rf"{os.strerror(errno.ENOSPC)}.*free disk space"):
        save_checkpoint(make_checkpoint(1, rows=1000), tmp_path / "last.ckpt")


def test_an_error_of_pickling_is_not_hidden(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"state_dict": lambda: None}, tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_or_missing_checkpoint_is_a_training_error(tmp_path, content):
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        TrainingError,
        match=r"last\.ckpt: the checkpoint cannot be read .* delete the \*\.ckpt files in .* which then starts anew",
    ):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_a_training_error(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make_checkpoint(1, rows=1000), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TrainingError, match=r"last\.ckpt: the checkpoint cannot be read"):
        load_checkpoint(path)


def measure_save(save):
    return measure_peak_bytes(save, lambda: make_checkpoint(1, ROWS))


def test_saving_needs_no_memory_for_the_table(tmp_path):
    assert measure_save(lambda checkpoint: save_checkpoint(checkpoint, tmp_path / "last.ckpt")) < 0.3 * TABLE_BYTES
    # The bound tells the two apart.
    plugin = TorchCheckpointIO()
    assert measure_save(lambda checkpoint: plugin.save_checkpoint(checkpoint, tmp_path / "old.ckpt")) > TABLE_BYTES


def test_loading_needs_no_memory_until_the_table_is_read(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make_checkpoint(1, ROWS), path)
    assert measure_peak_bytes(lambda _: load_weights(path)) < 0.3 * TABLE_BYTES
    assert measure_peak_bytes(lambda _: load_weights(path)["table"].sum()) < 1.3 * TABLE_BYTES
