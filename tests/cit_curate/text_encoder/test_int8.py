"""A linear layer in int8: near the float one, and of each row alone."""

from pathlib import Path

import pytest
import torch
from small_tower import small_tower

from cit_curate.processor import has_int8
from cit_curate.text_encoder import encoder as encoder_module
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.int8 import Int8Linear, int8_copy


def test_a_layer_is_near_its_float_one() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 64)
    inputs = torch.randn(5, 33, 96)
    with torch.inference_mode():
        expected, found = linear(inputs), Int8Linear(linear)(inputs)
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.01


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(1)
    layer = Int8Linear(torch.nn.Linear(96, 64))
    inputs = torch.randn(64, 96)
    with torch.inference_mode():
        whole = layer(inputs)
        assert torch.equal(layer(inputs[:17]), whole[:17])
        beside = layer(torch.cat([inputs[5:6], 100 * inputs[:20]]))
        assert torch.equal(beside[0], whole[5])


def test_a_row_of_zeros_gives_the_bias() -> None:
    linear = torch.nn.Linear(8, 3)
    with torch.inference_mode():
        assert torch.equal(Int8Linear(linear)(torch.zeros(2, 8)), linear.bias.repeat(2, 1))


def test_a_copy_leaves_the_tower_alone_and_shares_what_is_not_linear() -> None:
    tower = torch.nn.Sequential(
        torch.nn.Embedding(10, 8), torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    )
    copied = int8_copy(tower)
    assert isinstance(tower[1][0], torch.nn.Linear)
    assert isinstance(copied[1][0], Int8Linear)
    assert copied[0].weight is tower[0].weight


@pytest.mark.parametrize("instructions", [(), ("avx2", "avx512_f"), ("avx_vnni",), ("amx_int8",)])
def test_a_processor_without_instructions_for_int8_is_not_given_any(
    instructions: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict.fromkeys(instructions, True) | {"avx512_vnni": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    is_fast = not {*instructions}.isdisjoint({"avx_vnni", "amx_int8"})
    assert has_int8() is is_fast
    encoder = TextEncoder.load(small_tower(tmp_path), device="cpu")
    assert (encoder.int8 is not None) is is_fast
    monkeypatch.setattr(encoder_module, "has_int8", lambda: not is_fast)
    assert (TextEncoder(encoder.tower, encoder.tokenizer).int8 is None) is is_fast
