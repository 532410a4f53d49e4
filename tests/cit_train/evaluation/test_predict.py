"""`cit predict`: the numbers of the plain computation, and what happens to bad pictures."""

import json
from pathlib import Path

import pytest
import torch
from dual_encoders import save_dual_encoder
from PIL import Image
from tiny import picture
from torch.nn import functional
from transformers import AutoModel, VisionTextDualEncoderProcessor

from cit_curate.errors import BadInputError, ConfigError, NotFiniteError
from cit_train import cli
from cit_train.evaluation.class_mapping import ClassLabels
from cit_train.evaluation.predict import Prediction, find_images, predict_images
from cit_train.models.load import load_dual_encoder

CLASSES = ("red disc", "blue square", "green stripe", "white noise")


@pytest.fixture(scope="module")
def model(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual_encoder(world, tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(CLASSES), encoding="utf-8")
    return path


def predicted(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    cli.run(["predict", *map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def plain(model: Path, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and probabilities of one picture, through transformers alone."""
    encoder = AutoModel.from_pretrained(model).eval()
    processor = VisionTextDualEncoderProcessor.from_pretrained(model)
    inputs = processor(
        text=[f"a photo of a {name}" for name in CLASSES],
        images=Image.open(path).convert("RGB"),
        padding=True,
        return_tensors="pt",
    )
    # The towers' statistics decide how pictures are normalised, and not a saved processor.
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    pixels = ((inputs["pixel_values"] * 0.5 + 0.5) - mean) / std
    with torch.no_grad():
        output = encoder(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=pixels,
        )
    image, text = (
        functional.normalize(v, dim=-1) for v in (output.image_embeds, output.text_embeds)
    )
    return (image @ text.T)[0], output.logits_per_image.softmax(dim=-1)[0]


def test_predictions_are_those_of_the_model_itself(
    model: Path, world: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "pictures" / "red" / "disc.png"
    value = predicted(capsys, model, "--image", path, "--labels", labels)
    similarity, probability = plain(model, path)
    (image,) = value["images"]
    assert image["image"] == str(path)
    guesses = image["predictions"]
    assert [guess["rank"] for guess in guesses] == [1, 2, 3, 4]
    order = probability.argsort(descending=True)
    assert [guess["label"] for guess in guesses] == [CLASSES[at] for at in order]
    assert [g["similarity"] for g in guesses] == pytest.approx(similarity[order].tolist(), abs=1e-4)
    assert [g["probability"] for g in guesses] == pytest.approx(
        probability[order].tolist(), abs=1e-4
    )
    assert sum(g["probability"] for g in guesses) == pytest.approx(1)


def test_a_folder_is_all_pictures_below_it_and_top_cuts(
    model: Path, world: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / "pictures"
    value = predicted(capsys, model, "--image", folder, "--labels", labels, "--top", 2)
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    assert [image["image"] for image in value["images"]] == paths
    assert {len(image["predictions"]) for image in value["images"]} == {2}
    alone = predicted(capsys, model, "--image", paths[5], "--labels", labels, "--top", 2)
    # The same numbers, bit by bit, whatever else is classified with it.
    assert alone["images"][0] == value["images"][5]


def test_mapped_classes_share_probability_and_the_best_similarity(
    model: Path, world: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "pictures" / "blue" / "square.png"
    plain_value = predicted(capsys, model, "--image", path, "--labels", labels)
    by_label = {g["label"]: g for g in plain_value["images"][0]["predictions"]}
    mapping = tmp_path / "mapping.csv"
    mapping.write_text(
        "class,label\nred disc,round\n1,edged\ngreen stripe,edged\n", encoding="utf-8"
    )
    cli.run(
        [
            *("predict", str(model), "--image", str(path), "--labels", str(labels)),
            *("--mapping", str(mapping), "--json"),
        ]
    )
    ended = capsys.readouterr()
    assert "under their own names: 'white noise'" in ended.err
    value = json.loads(ended.out)
    assert (value["num_classes"], value["num_labels"]) == (4, 3)
    edged = next(g for g in value["images"][0]["predictions"] if g["label"] == "edged")
    both = [by_label["blue square"], by_label["green stripe"]]
    assert edged["probability"] == pytest.approx(sum(g["probability"] for g in both))
    assert edged["similarity"] == max(g["similarity"] for g in both)


def test_bad_pictures_are_named_and_the_others_go_on(
    model: Path, world: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = world / "pictures" / "red" / "disc.png"
    (tmp_path / "cut.png").write_bytes(picture("red", "disc", 0)[:200])
    (tmp_path / "page.png").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / name for name in ("cut.png", "none.png", "page.png", "empty")]
    command = ["predict", model, "--labels", labels, "--json", "--image", bad[0], good, *bad[1:]]
    cli.run([str(word) for word in command])
    ended = capsys.readouterr()
    value = json.loads(ended.out)
    assert [image["image"] for image in value["images"]] == [str(good)]
    reasons = {Path(each["image"]).name: each["reason"] for each in value["rejected"]}
    assert reasons == {
        "cut.png": "truncated_image",
        "none.png": "missing_image",
        "page.png": "format_not_allowed",
        "empty": "no_image",
    }
    assert ended.err.count("not classified: ") == 4
    with pytest.raises(BadInputError, match=r"none of .*cut\.png: truncated_image") as none_left:
        cli.run([str(w) for w in ("predict", model, "--labels", labels, "--image", bad[0])])
    assert none_left.value.exit_code == 3
    assert capsys.readouterr().out == ""


def test_the_table_shows_ranks_and_escapes_names(
    model: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "classes.txt"
    labels.write_text("red [bold]disc[/bold]\nblue \x1b[31msquare\n", encoding="utf-8")
    path = tmp_path / "[red]x.png"
    path.write_bytes(picture("red", "disc", 0))
    cli.run(["predict", str(model), "--image", str(path), "--labels", str(labels)])
    shown = capsys.readouterr().out
    assert str(path) in shown
    assert "red [bold]disc[/bold]" in shown
    assert "\x1b" not in shown


def test_another_tokenizer_can_be_given(
    model: Path, world: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / "pictures" / "red" / "disc.png"
    command = [model, "--image", path, "--labels", labels]
    own = predicted(capsys, *command)
    assert predicted(capsys, *command, "--tokenizer", world / "text")["images"] == own["images"]
    with pytest.raises(ConfigError, match="--tokenizer"):
        cli.run([str(w) for w in ("predict", *command, "--tokenizer", world / "pictures")])


def test_wrong_flags_are_refused(model: Path, world: Path, labels: Path, tmp_path: Path) -> None:
    image = str(world / "pictures" / "red" / "disc.png")
    command = ["predict", str(model), "--image", image, "--labels", str(labels)]
    for flags, message in (
        (["--top", "0"], "--top is 0"),
        (["--prompts", "a photo"], "needs {} once"),
        (["--max-text-length", "2"], "at least 4"),
        (["--mapping", str(tmp_path / "none.csv")], "there is no file"),
    ):
        with pytest.raises(ConfigError, match=message):
            cli.run([*command, *flags])
    with pytest.raises(ConfigError, match="holds no model"):
        cli.run(["predict", str(tmp_path), "--image", image, "--labels", str(labels)])
    with pytest.raises(ConfigError, match=r"there is no .*runn; give a run, a checkpoint's folder"):
        cli.run(["predict", str(tmp_path / "runn"), "--image", image, "--labels", str(labels)])


def test_a_broken_model_is_an_error_that_names_the_picture(model: Path, world: Path) -> None:
    encoder, _ = load_dual_encoder(model)
    with torch.no_grad():
        encoder.visual_projection.weight[0] = torch.nan
    path = world / "pictures" / "red" / "disc.png"
    vectors = functional.normalize(torch.ones(2, 16), dim=-1)
    with pytest.raises(NotFiniteError, match=r"disc\.png"):
        list(predict_images(encoder, [path], vectors, ClassLabels(("a", "b"), (0, 1))))


def test_equal_labels_keep_the_order_of_the_classes(model: Path, world: Path) -> None:
    encoder, _ = load_dual_encoder(model)
    vectors = functional.normalize(torch.ones(3, 16), dim=-1)
    path = world / "pictures" / "red" / "disc.png"
    labels = ClassLabels(("b", "a", "c"), (0, 1, 2))
    (found,) = predict_images(encoder, [path], vectors, labels, top=2)
    assert isinstance(found, Prediction)
    assert [guess.label for guess in found.guesses] == ["b", "a"]
    assert found.guesses[0].probability == pytest.approx(1 / 3)


def test_pictures_are_found_sorted_once_and_through_links(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".hidden").mkdir()
    for name in ("b/2.png", "b/1.JPG", "b/notes.txt", "b/.3.png", "b/.hidden/4.png", "c.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.png").symlink_to("c.png")
    found, rejected = find_images([tmp_path / "link.png", tmp_path / "b", tmp_path / "b" / "2.png"])
    assert found == [tmp_path / "link.png", tmp_path / "b" / "1.JPG", tmp_path / "b" / "2.png"]
    assert rejected == []
