"""`cit push`: exactly the public files, and a card that is true and does nothing."""

import html
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dual_encoders import EVIL, make_run, save_dual_encoder
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tiny import make_config
from transformers import AutoModel, VisionTextDualEncoderProcessor

from cit_curate.errors import ConfigError, ResourceError
from cit_train import cli
from cit_train.hub.model_card import inert
from cit_train.outer_loop import train

PUBLIC = [
    "README.md",
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def run_folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(world, tmp_path_factory.mktemp("push") / "run").path


@pytest.fixture(scope="module")
def pushed(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    cli.run(["push", str(run_folder), "me/toys", "--dry-run", "--out", str(out)])
    return out


class FakeApi:
    """Stands for the hub: what would be uploaded, read when it would be."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        from huggingface_hub import RepoUrl

        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))
        if self.error:
            raise self.error
        return RepoUrl(f"https://huggingface.co/me/{repo_id.rpartition('/')[2]}")

    def upload_folder(self, *, folder_path: str, **settings: Any) -> None:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append(("upload_folder", {"files": files, **settings}))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    import huggingface_hub

    monkeypatch.setattr(FakeApi, "calls", [], raising=False)
    monkeypatch.setattr(FakeApi, "error", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return FakeApi


def test_a_dry_run_writes_the_public_files_only(pushed: Path, run_folder: Path) -> None:
    assert sorted(path.name for path in pushed.iterdir()) == PUBLIC
    weights = (run_folder / "checkpoints" / "best" / "model.safetensors").read_bytes()
    assert (pushed / "model.safetensors").read_bytes() == weights
    model = AutoModel.from_pretrained(pushed)
    assert model.config.model_type == "vision-text-dual-encoder"
    processor = VisionTextDualEncoderProcessor.from_pretrained(pushed)
    assert processor.tokenizer.model_max_length == 16


def test_nothing_names_a_local_folder(pushed: Path) -> None:
    for path in pushed.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert "somebody" not in text
            assert str(Path.home()) + "/" not in text
            assert "/tmp/" not in text
            assert "_name_or_path" not in text


def test_the_card_says_what_the_weights_were_curated_from(pushed: Path) -> None:
    card = (pushed / "README.md").read_text(encoding="utf-8")
    # `best` is update 2: the second outer step has not been seen by these weights.
    assert "1 outer step up to update 2" in card
    assert "| 0 | 0.5 | 1,000 | 20 | 2.00% | 2 | 0.875 |" in card
    assert "pairs trained on: 2 different ones, 2 uses" in card
    assert "reasons of the selection: min&#95;ratio 1, threshold 1" in card
    assert "| red disc | 1 |" in card
    assert f"pool: toys (fingerprint {'f' * 64})" in card
    assert "| 2 | 60.0 | 50.0 |" in card
    assert "| 4 | 61.0 | 51.0 |" not in card
    assert "| torch | 2.6.0 |" in card
    assert "import cit_train.models" in card


def test_the_card_of_another_checkpoint_counts_up_to_it(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    last = run_folder / "checkpoints" / "last"
    cli.run(["push", str(last), "toys", "--dry-run", "--out", str(out)])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "2 outer steps up to update 4" in card
    assert "| 1 | 0.5 | 2,000 | 20 | 1.00% | 2 | 0.875 |" in card
    assert "pairs trained on: 4 different ones, 5 uses" in card


def test_the_front_matter_is_what_the_hub_reads(pushed: Path) -> None:
    data = ModelCard.load(pushed / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.base_model == ["org/text"]
    assert data.license is None
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_value) == ("pictures", 60.0)


def test_a_built_in_task_is_named_with_the_value_of_its_own_metric(
    world: Path, tmp_path: Path
) -> None:
    run = make_run(world, tmp_path / "run", eval_task="hateful_memes", metric="roc_auc")
    cli.run(["push", str(run.path), "me/toys", "--dry-run", "--out", str(tmp_path / "model")])
    card = ModelCard.load(tmp_path / "model" / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "hateful_memes",
        "roc_auc",
        70.0,
    )
    assert "on the task hateful&#95;memes; these weights" in card.text
    assert "| update | accuracy | mean per class | roc auc |" in card.text
    assert "| 2 | 60.0 | 50.0 | 70.0 |" in card.text


@pytest.mark.faults("R1")
def test_a_class_name_does_nothing_in_the_card(pushed: Path) -> None:
    card = (pushed / "README.md").read_text(encoding="utf-8")
    assert "<img" not in card
    assert "](javascript" not in card
    assert "www.e.org" not in card
    assert f"| {inert(EVIL)} | 1 |" in card


@given(st.text())
def test_inert_text_shows_itself_and_has_nothing_active(text: str) -> None:
    made = inert(text)
    assert re.fullmatch(r"(?:[\w ,.\-\ufffd]|&#\d+;)*", made)
    assert not re.search(r"[A-Za-z]\.[A-Za-z]|_", made)
    shown = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    assert html.unescape(made) == shown


@pytest.mark.faults("R1")
@given(st.text() | st.sampled_from([EVIL, "- x", "1. x", "x | y", "&lt;b&gt;", "\\| x"]))
def test_a_markdown_reader_sees_a_table_with_the_text_and_nothing_else(text: str) -> None:
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    page = reader.render(f"| class |\n| --- |\n| x {inert(text)} |\n")
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags == {"table", "thead", "tbody", "tr", "th", "td"}
    cell = page.partition("<td>")[2].partition("</td>")[0]
    assert html.unescape(cell).split() == ["x", *html.unescape(inert(text)).split()]


def test_a_model_of_unknown_origin_says_so_and_needs_no_package_of_ours(
    world: Path, tmp_path: Path
) -> None:
    folder = save_dual_encoder(world, tmp_path / "model")
    cli.run(["push", str(folder), "me/it", "--dry-run", "--out", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Nothing is known of the data" in card
    assert "import cit_train" not in card
    yaml.safe_load(card.split("---")[1])


def test_push_uploads_the_folder_as_one_commit(
    run_folder: Path, api: type[FakeApi], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["push", str(run_folder), "hf://me/toys", "--private", "--license", "apache-2.0"]
    cli.run([*command, "--json"])
    (made, first), (uploaded, second) = api.calls
    assert (made, uploaded) == ("create_repo", "upload_folder")
    assert first == {"repo_id": "me/toys", "repo_type": "model", "private": True, "exist_ok": True}
    assert sorted(second["files"]) == PUBLIC
    assert b"license: apache-2.0" in second["files"]["README.md"]
    assert second["repo_id"] == "me/toys"
    assert second["commit_message"] == "Upload the dual encoder of update 2 with cit"
    value = json.loads(capsys.readouterr().out)
    assert value["uploaded"] is True
    assert value["url"] == "https://huggingface.co/me/toys"
    assert sorted(value["files"]) == PUBLIC


def test_without_a_token_nothing_is_done(
    run_folder: Path, api: type[FakeApi], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"hf auth login.*--dry-run"):
        cli.run(["push", str(run_folder), "me/toys", "--out", str(tmp_path / "out")])
    assert api.calls == []
    assert not (tmp_path / "out").exists()


def test_what_the_hub_refuses_is_a_message(run_folder: Path, api: type[FakeApi]) -> None:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    # httpx or its successor, whichever the installed huggingface_hub uses
    httpx = importlib.import_module(HTTPError.__module__.partition(".")[0])
    request = httpx.Request("POST", "https://huggingface.co/api/repos/create")
    for status, kind in ((403, ConfigError), (500, ResourceError)):
        response = httpx.Response(status, request=request)
        api.error = HfHubHTTPError("no", response=response)
        with pytest.raises(kind):
            cli.run(["push", str(run_folder), "me/toys"])
    api.error = httpx.ConnectError("no route")
    with pytest.raises(ResourceError, match="no route; run the command again"):
        cli.run(["push", str(run_folder), "me/toys"])


def test_push_honours_offline_mode(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE.*--dry-run"):
        cli.run(["push", str(run_folder), "me/toys"])


@pytest.mark.parametrize("repo", ["me/toys@v1", "a/b/c", "../toys", "me/<b>"])
def test_a_wrong_repository_is_refused(run_folder: Path, repo: str, tmp_path: Path) -> None:
    out = ["--dry-run", "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError):
        cli.run(["push", str(run_folder), repo, *out])


def test_a_folder_that_is_there_is_left_alone(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        cli.run(["push", str(run_folder), "me/toys", "--dry-run", "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="--dry-run writes a folder"):
        cli.run(["push", str(run_folder), "me/toys", "--dry-run"])
    with pytest.raises(ConfigError, match="holds no model"):
        cli.run(["push", str(tmp_path), "me/toys", "--dry-run", "--out", str(tmp_path / "x")])


def test_a_damaged_checkpoint_is_not_published(world: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from cit_curate.errors import DamagedError
    from cit_curate.storage.durable import describe_file, write_json

    folder = save_dual_encoder(world, tmp_path / "model")
    entry = describe_file(folder / "model.safetensors", folder, rows=0)
    write_json(folder / "manifest.json", [asdict(entry)])
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="SHA-256 differs"):
        cli.run(["push", str(folder), "me/it", "--dry-run", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_card_of_an_uncurated_run_names_no_threshold(world: Path, tmp_path: Path) -> None:
    run = train(make_config(world, curation="none", metadata="", max_updates=2), tmp_path / "run")
    cli.run(["push", str(run.path), "me/toys", "--dry-run", "--out", str(tmp_path / "card")])
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in card.splitlines() if line.startswith("| 0 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert (cells[1], cells[-1]) == ("-", "-")
    assert "everything 16" in card
    assert "Classes with the most pairs" not in card
