"""Foreign weight files: tensors come out, nothing in them runs, damage is said."""

import os
import tarfile
from pathlib import Path

import pytest
import torch
from foreign_files import original_configs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cit_curate.errors import ConfigError, DamagedError
from cit_train.models.weight_files import read_tensors, unpickle_tensors

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Payload:
    """Unpickled by anything but a safe loader, it makes a file."""

    def __init__(self, path: Path, function: object) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        if self.function is open:
            return open, (str(self.path), "w")
        return self.function, (f"touch {self.path}",)


@pytest.mark.faults("K6")
@both_formats
@pytest.mark.parametrize("function", [open, os.system, eval, exec])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside tensors"])
def test_a_payload_is_refused_and_never_run(
    tmp_path: Path, function: object, inside: bool, zipped: bool
) -> None:
    payload: object = Payload(tmp_path / "ran", function)
    content = {"model": {"weight": torch.ones(2)}, "args": payload} if inside else payload
    path = tmp_path / "bad.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DamagedError, match=r"bad\.pth is refused: it holds more than tensors"):
        read_tensors(path, "model")
    assert not (tmp_path / "ran").exists()
    assert DamagedError.exit_code == 4


@pytest.mark.faults("K6")
@both_formats
def test_the_originals_config_object_is_let_through_and_dropped(
    tmp_path: Path, zipped: bool
) -> None:
    path = tmp_path / "checkpoint-best.pth"
    with original_configs() as config_class:
        content = {"model": {"weight": torch.arange(3)}, "args": config_class(lr=1.0, x={"y": [1]})}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors = read_tensors(path, "model")
    assert tensors.keys() == {"weight"}
    assert torch.equal(tensors["weight"], torch.arange(3))


@pytest.mark.faults("K6")
def test_another_class_of_the_same_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    with original_configs() as config_class:
        config_class.__qualname__ = config_class.__name__ = "Other"
        import configs

        configs.Other = config_class
        torch.save({"model": {"weight": torch.ones(1)}, "args": config_class()}, path)
    with pytest.raises(DamagedError, match=r"configs\.Other"):
        read_tensors(path, "model")


def test_the_first_key_that_is_there_is_taken_else_the_whole_file(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "keyed.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "flat.pth")
    save_file({"a": torch.ones(1)}, tmp_path / "safe.safetensors")
    for name in ("keyed.pth", "flat.pth", "safe.safetensors"):
        assert read_tensors(tmp_path / name, "model", "state_dict").keys() == {"a"}


def test_a_model_does_not_live_in_the_file_it_was_read_from(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(4096)}, path)
    tensor = read_tensors(path)["a"]
    path.write_bytes(bytes(path.stat().st_size))
    assert tensor.sum() == 4096


def test_what_holds_no_tensors_says_what_it_holds(tmp_path: Path) -> None:
    for content, message in (
        ([torch.ones(1)], "holds a list, not tensors by name"),
        ({"a": torch.ones(1), "epoch": 3}, "holds also epoch"),
        ({}, "holds nothing"),
    ):
        torch.save(content, tmp_path / "weights.bin")
        with pytest.raises(ConfigError, match=message):
            read_tensors(tmp_path / "weights.bin")
    with pytest.raises(ConfigError, match="there is no weight file"):
        read_tensors(tmp_path / "nowhere.pth")
    with tarfile.open(tmp_path / "released.tar", "w") as tar:
        tar.add(tmp_path / "weights.bin", "released/pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"is a tar.*cit convert checkpoint"):
        read_tensors(tmp_path / "released.tar")


def test_a_damaged_safetensors_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match="not a readable safetensors file"):
        read_tensors(path)


@settings(max_examples=60, deadline=None)
@given(
    zipped=st.booleans(),
    cut=st.floats(0, 0.999),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=3),
)
@example(zipped=True, cut=0.0, flips=[(0.9876029577381108, 1)])  # a zip of several disks
def test_a_damaged_file_is_an_error_of_ours_or_still_tensors(
    tmp_path_factory: pytest.TempPathFactory,
    zipped: bool,
    cut: float,
    flips: list[tuple[float, int]],
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "weights.pth"
    torch.save(
        {"a": torch.ones(8), "b": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped
    )
    data = bytearray(path.read_bytes())
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    path.write_bytes(data if flips else data[: int(cut * len(data))])
    try:
        tensors = read_tensors(path)
    except (ConfigError, DamagedError):
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def test_an_open_file_is_read_like_a_path(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.bin")
    with (tmp_path / "weights.bin").open("rb") as stream:
        assert unpickle_tensors(stream, "an open file").keys() == {"a"}
