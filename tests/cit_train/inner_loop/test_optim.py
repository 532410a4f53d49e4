import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, VisionTextDualEncoderModel, ViTConfig, ViTModel

from cit_train.inner_loop.optim import learning_rate, parameter_groups, set_learning_rates

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/schedule.json").read_text())
TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def tiny_dual_encoder() -> VisionTextDualEncoderModel:
    torch.manual_seed(0)
    return VisionTextDualEncoderModel(
        vision_model=ViTModel(ViTConfig(image_size=32, patch_size=16, **TINY)),
        text_model=BertModel(BertConfig(vocab_size=50, **TINY)),
    )


@pytest.fixture(scope="module")
def model() -> VisionTextDualEncoderModel:
    frozen = tiny_dual_encoder()
    frozen.vision_model.requires_grad_(False)
    return frozen


@pytest.mark.parametrize(("update", "rate"), GOLDEN["values"])
def test_the_rate_is_exactly_that_of_the_reference(update: int, rate: float) -> None:
    keys = ("lr", "min_lr", "warmup_updates", "max_updates")
    assert learning_rate(update, **{key: GOLDEN[key] for key in keys}) == rate


def test_without_warm_up_the_first_update_has_the_peak_rate() -> None:
    assert learning_rate(0, lr=1.0, min_lr=0.1, warmup_updates=0, max_updates=10) == 1.0


def test_a_warm_up_may_end_between_two_updates() -> None:
    rates = [
        learning_rate(update, lr=1.0, min_lr=0.0, warmup_updates=1.2, max_updates=30)
        for update in range(31)
    ]
    assert rates[:2] == [0.0, 1 / 1.2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[30] == 0.0


@pytest.mark.parametrize(
    ("update", "warmup_updates", "message"),
    [(-1, 2, "update is -1"), (11, 2, "update is 11"), (0, 10, "warmup_updates is 10")],
)
def test_an_update_outside_the_training_is_refused(
    update: int, warmup_updates: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        learning_rate(update, lr=1.0, min_lr=0.0, warmup_updates=warmup_updates, max_updates=10)


def test_weight_decay_follows_kind_and_dimension(model: VisionTextDualEncoderModel) -> None:
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(model, lr=5e-4)
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in decay_of
        elif name in ("visual_projection.weight", "text_projection.weight"):
            assert decay_of[id(parameter)] == 1.0
        else:
            assert decay_of[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.2), name
    assert decay_of[id(model.logit_scale)] == 0.2


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    trainable = tiny_dual_encoder()
    grouped = [
        id(parameter)
        for group in parameter_groups(trainable, lr=1.0)
        for parameter in group["params"]
    ]
    assert sorted(grouped) == sorted(id(parameter) for parameter in trainable.parameters())


def test_groups_and_their_parameters_have_a_fixed_order() -> None:
    first, second = tiny_dual_encoder(), tiny_dual_encoder()

    def layout(model: VisionTextDualEncoderModel) -> list[tuple[str, list[str]]]:
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        return [
            (group["name"], [name_of[id(parameter)] for parameter in group["params"]])
            for group in parameter_groups(model, lr=1.0)
        ]

    assert layout(first) == layout(second)
    names = [name for name, _ in layout(first)]
    assert names == [
        "text",
        "text-no-decay",
        "vision",
        "vision-no-decay",
        "projection",
        "logit-scale",
    ]


def test_each_part_has_its_own_rate() -> None:
    groups = parameter_groups(tiny_dual_encoder(), lr=2.0, text_lr=1.0, projection_lr=6.0)
    assert {group["name"]: group["lr_scale"] for group in groups} == {
        "text": 0.5,
        "text-no-decay": 0.5,
        "vision": 1.0,
        "vision-no-decay": 1.0,
        "projection": 3.0,
        "logit-scale": 3.0,
    }


def test_a_rate_reaches_every_group_of_an_optimizer(model: VisionTextDualEncoderModel) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=2.0, text_lr=0.0), lr=2.0)
    set_learning_rates(optimizer, 0.25)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"text": 0.0, "text-no-decay": 0.0, "projection": 0.25, "logit-scale": 0.25}


def test_a_model_without_trainable_parameters_is_refused() -> None:
    frozen = tiny_dual_encoder().requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        parameter_groups(frozen, lr=1.0)


def test_a_rate_of_zero_is_refused(model: VisionTextDualEncoderModel) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        parameter_groups(model, lr=0.0)
