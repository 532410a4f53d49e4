"""The demo at reduced scale, on the real packages, as a person would run it."""

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest

CIT = [sys.executable, "-m", "cit_train.cli"]


def run_demo(out: Path, *flags: str) -> tuple[dict[str, object], str]:
    """`cit demo --json`: what it printed on stdout, parsed, and on stderr.

    The packages are in the cache: `make test` runs `cit demo --fetch-only` before.
    """
    command = [*CIT, "demo", "--out", str(out), "--json", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_makes_everything_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first, _ = run_demo(out, "--updates", "10")
    arms = {result["arm"]: result for result in first["results"]}
    assert list(arms) == ["curated", "uncurated", "uncurated 4x"]
    assert arms["curated"]["updates"] == arms["uncurated"]["updates"] == 10
    assert arms["uncurated 4x"]["updates"] == 40
    assert arms["curated"]["kept_ratio"] < 0.3
    assert arms["uncurated"]["kept_ratio"] == 1.0
    # Curation is ahead at equal updates already at this scale, and far above guessing.
    assert arms["curated"]["mean_per_class"] > arms["uncurated"]["mean_per_class"] + 5
    assert arms["curated"]["mean_per_class"] > 3 * arms["curated"]["chance"]

    paths = {name: Path(path) for name, path in first["paths"].items()}
    assert all(path.exists() for path in paths.values())
    counts = json.loads(paths["curated dataset"].read_text())
    assert sum(counts.values()) == 10 * 64
    page = paths["report"].read_text()
    assert page.count("data:image/") > 50
    assert "<script" not in page

    # Forked, to spare the imports: what is left to do is seconds.
    resumed = forked.run("cit_train.cli:main", "demo", "--out", out, "--json", "--updates", "10")
    assert resumed.returncode == 0, resumed.stderr
    again = json.loads(resumed.stdout)
    assert again["results"] == first["results"]
    assert again["seconds"] < 120
