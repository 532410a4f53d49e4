"""`cit metadata list` and `cit metadata show`, from their arguments to what they print."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cit_curate.config import MetadataConfig
from cit_curate.metadata.entries import load_metadata
from cit_curate.metadata.tasks import TASK_NAMES
from cit_train import cli

Cit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cit:
    """Runs `cit metadata …`: exit code, stdout, stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cit", "metadata", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_list_has_a_line_for_every_built_in_list(cit: Cit) -> None:
    code, out, err = cit("list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert list(rows) == ["name", *TASK_NAMES, "mt", "imagenet21k"]
    assert rows["imagenet"][-4:] == ["1,000", "7", "accuracy", "clip-benchmark"]
    assert "3,422" in rows["mt"]


def test_list_as_json_is_one_document(cit: Cit) -> None:
    code, out, _ = cit("list", "--json")
    listed = {each["name"]: each for each in json.loads(out)}
    assert code == 0
    assert listed["hateful_memes"] == {
        "name": "hateful_memes",
        "title": "Hateful Memes",
        "entries": 2,
        "prompts": 1,
        "metric": "roc_auc",
        "source": "cit",
    }
    assert listed["imagenet21k"]["entries"] == 20_944


def test_list_without_the_library_says_how_to_get_it(
    cit: Cit, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "clip" in name else find_spec(name)
    )
    code, out, err = cit("list")
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert code == 0
    assert rows["mt"][-4:-2] == ["?", "?"]
    assert rows["imagenet"][-4:-2] == ["1,000", "7"]
    assert "pip install 'cit[tasks]'" in err


@pytest.mark.parametrize("name", ["fer2013", "imagenet", "mt"])
def test_what_show_prints_is_a_metadata_file(cit: Cit, tmp_path: Path, name: str) -> None:
    code, out, _ = cit("show", name, "--prompts")
    assert code == 0
    path = tmp_path / "classes.txt"
    path.write_text(out)
    again = load_metadata(MetadataConfig(metadata=str(path)))
    assert again == load_metadata(MetadataConfig(metadata=name))


def test_show_gives_prompts_once_and_the_first_entries(cit: Cit) -> None:
    _, out, _ = cit("show", "stl10", "--prompts", "--limit", 2)
    assert out.splitlines() == [
        "# stl10: 10 entries",
        "# prompt: a photo of a {}.",
        "# prompt: a photo of the {}.",
        "airplane",
        "bird",
        "# and 8 more, without --limit",
    ]


def test_show_reads_a_file_and_a_column(cit: Cit, tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("id,name\n1,cat|kitten\n2,#tag\n")
    _, out, _ = cit("show", path, "--metadata-column", "name")
    assert out.splitlines()[1:] == ["cat | kitten", "| #tag"]
    _, out, _ = cit("show", path, "--metadata-column", "name", "--json")
    assert json.loads(out) == {
        "metadata": str(path),
        "num_entries": 2,
        "entries": [{"name": "cat", "synonyms": ["kitten"]}, {"name": "#tag", "synonyms": []}],
    }


def test_show_says_what_is_wrong(cit: Cit) -> None:
    code, out, err = cit("show", "imagnet")
    assert (code, out) == (2, "")
    assert "did you mean 'imagenet'" in err
    code, _, err = cit("show", "stl10", "--limit", 0)
    assert code == 2
    assert "at least 1" in err


def test_listing_metadata_imports_no_torch() -> None:
    program = (
        "import sys; from cit_train import cli; cli.run(['metadata', 'list']); "
        "sys.exit('torch' in sys.modules or 'clip_benchmark' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
