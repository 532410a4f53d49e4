import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cit_train.inner_loop.losses import Loss, contrastive_loss

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/losses.json").read_text())
LOSSES: tuple[Loss, ...] = ("cit", "clip")


def golden_inputs() -> tuple[Tensor, Tensor, Tensor]:
    image, text = (torch.tensor(GOLDEN[side], requires_grad=True) for side in ("image", "text"))
    return image, text, torch.tensor(math.log(GOLDEN["logit_scale_exp"]), requires_grad=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_are_those_of_the_reference(loss: Loss) -> None:
    image, text, logit_scale = golden_inputs()
    value = contrastive_loss(image, text, logit_scale, loss=loss)
    value.backward()
    expected = GOLDEN[loss]
    assert value.item() == pytest.approx(expected["loss"], abs=1e-6)
    assert image.grad is not None
    assert text.grad is not None
    assert logit_scale.grad is not None
    torch.testing.assert_close(image.grad, torch.tensor(expected["grad_image"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(text.grad, torch.tensor(expected["grad_text"]), atol=1e-6, rtol=0)
    # The reference's gradient is that of the factor, ours that of its logarithm.
    grad_factor = logit_scale.grad.item() / GOLDEN["logit_scale_exp"]
    assert grad_factor == pytest.approx(expected["grad_scale"], abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_norm_of_the_features_does_not_matter(loss: Loss) -> None:
    image, text, logit_scale = golden_inputs()
    raw = contrastive_loss(image, text, logit_scale, loss=loss)
    unit = contrastive_loss(functional.normalize(image, dim=-1), 7 * text, logit_scale, loss=loss)
    torch.testing.assert_close(raw, unit)


def test_cit_asks_only_for_the_text_of_each_image() -> None:
    # Both images point at the first text: the second image has the wrong one, each text has a tie.
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    cit = contrastive_loss(image, text, torch.tensor(0.0), loss="cit").item()
    clip = contrastive_loss(image, text, torch.tensor(0.0), loss="clip").item()
    one_way = (math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2
    assert cit == pytest.approx(one_way)
    assert clip == pytest.approx((one_way + math.log(2)) / 2)


def test_the_loss_is_float32_under_autocast() -> None:
    image, text, logit_scale = golden_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        value = contrastive_loss(image.bfloat16(), text.bfloat16(), logit_scale, loss="cit")
    assert value.dtype == torch.float32
    plain = contrastive_loss(image.bfloat16(), text.bfloat16(), logit_scale, loss="cit")
    assert value.item() == plain.item()


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 3\)"):
        contrastive_loss(torch.ones(2, 3), torch.ones(4, 3), torch.tensor(0.0), loss="cit")


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="cit or clip"):
        contrastive_loss(
            torch.ones(2, 3),
            torch.ones(2, 3),
            torch.tensor(0.0),
            loss="siglip",  # type: ignore[arg-type]
        )
