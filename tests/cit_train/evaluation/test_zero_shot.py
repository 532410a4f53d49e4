import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from cit_curate.errors import BadInputError, NotFiniteError
from cit_curate.metadata.entries import MetadataEntry
from cit_train.evaluation import zero_shot
from cit_train.evaluation.pooled_images import pooled_images, project
from cit_train.evaluation.prompts import NAME_ONLY
from cit_train.evaluation.readers.image_folder import ImageFolder
from cit_train.evaluation.zero_shot import ClassAccuracy, class_features, evaluate

SIDE = 32
WORDS = ["a", "photo", "picture", "of", "red", "green", "blue", "crimson", "dark", "light"]
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.5,
}
SIMPLE_PROMPTS = ("{}", "a photo of a {}", "a picture of a {}")
CLASSES = (
    MetadataEntry("red", ("crimson", "dark red")),
    MetadataEntry("green"),
    MetadataEntry("light blue"),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    return BertTokenizerFast(str(vocabulary))


@pytest.fixture
def model() -> VisionTextDualEncoderModel:
    torch.manual_seed(1)
    return VisionTextDualEncoderModel(
        vision_model=ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **TINY)),
        text_model=BertModel(BertConfig(vocab_size=5 + len(WORDS), **TINY)),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise pictures in different sizes: 40, 25 and 35 of them."""
    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)
    for channel, (name, count) in enumerate((("0red", 40), ("1green", 25), ("2blue", 35))):
        (folder / name).mkdir()
        for number in range(count):
            height, width = rng.integers(40, 80, size=2)
            values = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            values[:, :, channel] += 130
            Image.fromarray(values).save(folder / name / f"{number:03}.png")
    return folder


@pytest.fixture
def folder(root: Path) -> ImageFolder:
    return dataclasses.replace(ImageFolder.open(root), classes=CLASSES)


def plain_class_features(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, prompts: tuple[str, ...]
) -> torch.Tensor:
    """Text by text, without batches or padding, through the model's own text features."""
    model.eval()
    rows = []
    for entry in CLASSES:
        features = []
        for name in (entry.name, *entry.synonyms):
            for prompt in prompts:
                tokens = tokenizer(prompt.format(name), return_tensors="pt")
                feature = model.get_text_features(**tokens).pooler_output[0]
                features.append(feature / feature.norm())
        mean = sum(features, torch.zeros(512)) / len(features)
        rows.append(mean / mean.norm())
    return torch.stack(rows).detach()


def plain_image_features(
    model: VisionTextDualEncoderModel, paths: tuple[Path, ...]
) -> torch.Tensor:
    """Picture by picture with torchvision, through the model's own image features."""
    model.eval()
    view = Compose(
        [
            Resize(round(SIDE * 256 / 224)),
            CenterCrop(SIDE),
            ToTensor(),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    features = []
    for path in paths:
        with Image.open(path) as image:
            pixels = view(image)[None]
        features.append(model.get_image_features(pixels).pooler_output[0])
    return torch.nn.functional.normalize(torch.stack(features), dim=-1).detach()


@pytest.mark.parametrize("prompts", [NAME_ONLY, SIMPLE_PROMPTS])
def test_class_features_equal_a_plain_computation(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, prompts: tuple[str, ...]
) -> None:
    features = class_features(model, tokenizer, CLASSES, prompts)
    expected = plain_class_features(model, tokenizer, prompts)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_class_features_do_not_depend_on_the_batches(
    model: VisionTextDualEncoderModel,
    tokenizer: BertTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = class_features(model, tokenizer, CLASSES, SIMPLE_PROMPTS)
    monkeypatch.setattr(zero_shot, "TEXTS_PER_PASS", 2)
    parts = class_features(model, tokenizer, CLASSES, SIMPLE_PROMPTS)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_prompts_are_cut_to_the_maximum_length(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast
) -> None:
    long = [MetadataEntry("red " * 10 + "blue"), MetadataEntry("red " * 10 + "green")]
    cut = class_features(model, tokenizer, long, NAME_ONLY, max_text_length=8)
    assert torch.equal(cut[0], cut[1])


def test_no_classes_and_no_prompts_are_refused(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast
) -> None:
    with pytest.raises(ValueError, match="0 classes"):
        class_features(model, tokenizer, (), NAME_ONLY)
    with pytest.raises(ValueError, match="0 prompts"):
        class_features(model, tokenizer, CLASSES, ())


def test_image_features_equal_a_plain_computation(
    model: VisionTextDualEncoderModel, folder: ImageFolder
) -> None:
    pooled = pooled_images(model, folder.paths)
    assert pooled.vectors.shape == (100, 16)
    assert pooled.rows.tolist() == list(range(100))
    assert pooled.rejected == ()
    expected = plain_image_features(model, folder.paths)
    torch.testing.assert_close(project(model, pooled), expected, atol=1e-5, rtol=0)


def test_an_evaluation_equals_a_plain_computation(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, folder: ImageFolder
) -> None:
    evaluation = evaluate(
        model,
        tokenizer,
        pooled_images(model, folder.paths),
        folder.labelled(),
        prompts=SIMPLE_PROMPTS,
    )
    similarity = (
        plain_image_features(model, folder.paths)
        @ plain_class_features(model, tokenizer, SIMPLE_PROMPTS).T
    )
    right = similarity.argmax(dim=1) == torch.tensor([0] * 40 + [1] * 25 + [2] * 35)
    by_class = [100 * part.double().mean().item() for part in right.split([40, 25, 35])]
    assert evaluation.num_images == 100
    assert evaluation.num_classes == 3
    assert evaluation.num_rejected == 0
    assert evaluation.chance == pytest.approx(100 / 3)
    assert evaluation.accuracy == pytest.approx(right.double().mean().item() * 100)
    assert evaluation.mean_per_class == pytest.approx(sum(by_class) / 3)
    names = ("red", "green", "light blue")
    assert evaluation.per_class == {
        name: ClassAccuracy(count, pytest.approx(percent))
        for name, count, percent in zip(names, (40, 25, 35), by_class, strict=True)
    }


def test_a_perfect_and_a_useless_model_get_what_they_deserve(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, folder: ImageFolder
) -> None:
    pooled = pooled_images(model, folder.paths)
    classes = class_features(model, tokenizer, CLASSES, NAME_ONLY)
    with torch.no_grad():
        model.visual_projection.weight.zero_()
        # The first three pooled dimensions are turned into the three class vectors.
        model.visual_projection.weight[:, :3] = classes.T
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(folder.targets), 16).float()
    perfect = evaluate(
        model, tokenizer, dataclasses.replace(pooled, vectors=one_hot), folder.labelled()
    )
    assert perfect.accuracy == perfect.mean_per_class == 100.0
    always_first = torch.zeros_like(one_hot)
    always_first[:, 0] = 1
    useless = evaluate(
        model, tokenizer, dataclasses.replace(pooled, vectors=always_first), folder.labelled()
    )
    assert useless.accuracy == 40.0
    assert useless.mean_per_class == pytest.approx(100 / 3)
    assert useless.per_class["green"] == ClassAccuracy(25, 0.0)


def test_modes_of_all_modules_are_restored(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, folder: ImageFolder
) -> None:
    model.train()
    model.vision_model.eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, tokenizer, pooled_images(model, folder.paths[:4]), folder.labelled())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="0 prompts"):
        class_features(model, tokenizer, CLASSES, ())
    with pytest.raises(BadInputError):
        pooled_images(model, [Path("nowhere.png")])
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_off(model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast) -> None:
    model.train()
    first = class_features(model, tokenizer, CLASSES, NAME_ONLY)
    assert torch.equal(first, class_features(model, tokenizer, CLASSES, NAME_ONLY))


def test_pooled_vectors_can_be_trained_on(
    model: VisionTextDualEncoderModel, folder: ImageFolder
) -> None:
    pooled = pooled_images(model, folder.paths[:4])
    model.visual_projection(pooled.vectors).sum().backward()
    assert model.visual_projection.weight.grad is not None


def test_order_does_not_depend_on_threads_and_progress_is_told(
    model: VisionTextDualEncoderModel, folder: ImageFolder
) -> None:
    progress: list[int] = []
    one = pooled_images(model, folder.paths, num_threads=1, on_batch=progress.append)
    four = pooled_images(model, folder.paths, num_threads=4)
    assert torch.equal(one.vectors, four.vectors)
    assert progress == [64, 100]


def test_an_unreadable_picture_is_left_out_and_named(
    model: VisionTextDualEncoderModel,
    tokenizer: BertTokenizerFast,
    folder: ImageFolder,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(folder.paths[7].read_bytes()[:100])
    paths = (*folder.paths[:7], broken, *folder.paths[8:])
    pooled = pooled_images(model, paths)
    assert [(image.title, image.reason) for image in pooled.rejected] == [
        (str(broken), "truncated_image")
    ]
    assert pooled.rows.tolist() == [row for row in range(100) if row != 7]
    whole = pooled_images(model, folder.paths)
    torch.testing.assert_close(pooled.vectors, whole.vectors[pooled.rows], atol=1e-5, rtol=1e-5)
    evaluation = evaluate(
        model, tokenizer, pooled, dataclasses.replace(folder, paths=paths).labelled()
    )
    assert evaluation.num_images == 99
    assert evaluation.num_rejected == 1
    assert evaluation.per_class["red"].num_images == 39


def test_more_than_one_percent_unreadable_is_bad_input(
    model: VisionTextDualEncoderModel, folder: ImageFolder
) -> None:
    missing = (Path("nowhere/1.png"), Path("nowhere/2.png"))
    with pytest.raises(BadInputError, match=r"2 of 100 .* 1%: nowhere/1.png: missing_image"):
        pooled_images(model, folder.paths[:98] + missing)


def test_no_paths_are_refused(model: VisionTextDualEncoderModel) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        pooled_images(model, ())


def test_classes_of_one_name_are_told_apart_by_their_folder(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, folder: ImageFolder
) -> None:
    cranes = dataclasses.replace(folder, classes=(CLASSES[1], *CLASSES[1:]))
    evaluation = evaluate(model, tokenizer, pooled_images(model, folder.paths), cranes.labelled())
    assert list(evaluation.per_class) == ["green (0red)", "green (1green)", "light blue"]
    # Their vectors are equal, so the earlier class gets every picture.
    assert evaluation.per_class["green (1green)"].accuracy == 0.0


def test_broken_weights_are_an_error_that_names_its_object(
    model: VisionTextDualEncoderModel, tokenizer: BertTokenizerFast, folder: ImageFolder
) -> None:
    pooled = pooled_images(model, folder.paths[:3])
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
        with pytest.raises(NotFiniteError, match="projection"):
            evaluate(model, tokenizer, pooled, folder.labelled())
        model.text_projection.weight.fill_(float("inf"))
        with pytest.raises(NotFiniteError, match="class 'red'"):
            class_features(model, tokenizer, CLASSES, NAME_ONLY)
        model.vision_model.layernorm.weight.fill_(float("nan"))
        with pytest.raises(NotFiniteError, match=r"000\.png"):
            pooled_images(model, folder.paths[:3])
