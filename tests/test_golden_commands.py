"""The golden selections by command, as a person would type it."""

import json
import shutil
from pathlib import Path

import forked
import pytest

GOLDEN = Path(__file__).parent / "golden"


def run(*words: str, cwd: Path) -> str:
    result = forked.run("cit_train.cli:main", *words, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the golden captions and labels, and their pool P."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("captions.csv", "labels.txt"):
        shutil.copy(GOLDEN / name, folder)
    columns = ["--image-id", "image_id", "--text-key", "text_key", "--caption", "caption"]
    run("pool", "build", "captions.csv", *columns, "--out", "P", cwd=folder)
    return folder


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("case_a", marks=pytest.mark.slow),
        pytest.param("case_b", marks=pytest.mark.slow),
        pytest.param("case_c", marks=pytest.mark.slow),
    ],
)
def test_a_golden_selection_by_command(folder: Path, case: str) -> None:
    golden = json.loads((GOLDEN / f"{case}.json").read_text())
    run(
        *["curate", "P", "--metadata", "labels.txt", "--text-encoder", "package:minilm"],
        *["--threshold", str(golden["threshold"]), "--min-ratio", str(golden["min_ratio"])],
        *["--batch-size", str(golden["batch_size"])],
        *["--curate-every", str(golden["curate_every"])],
        *["--collection", "multiset", "--order", "sequential", "--out", case],
        cwd=folder,
    )
    sql = "select pair_key from selections order by scan_position"
    header, *keys = run("query", case, sql, "--csv", cwd=folder).split()
    assert header == "pair_key"
    ties = {key: tied[0] for tied in golden["tied_at_the_cut"] for key in tied}
    assert sorted(ties.get(key, key) for key in keys) == sorted(
        ties.get(key, key) for key in golden["expected"]
    )
    (rounds,) = json.loads(run("query", case, "select scanned from rounds", "--json", cwd=folder))
    assert rounds["scanned"] == golden["num_scanned"]
