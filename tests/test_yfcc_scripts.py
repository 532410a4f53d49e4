"""The YFCC scripts: the doors to `cit pool build`, and the benchmark at small scale."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cit_curate.pool.pool import Pool

ROOT = Path(__file__).parents[1]


def run(script: str, *flags: str, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_doors_take_the_files_of_the_original_and_further_flags(tmp_path: Path) -> None:
    for folder in ("yfcc15m", "yfcc100m"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        np.save(tmp_path / "data" / folder / "flickr_unique_ids.npy", [3, 5])
    lines = ["\t".join([str(image), *["x"] * 24]) for image in (3, 4, 5)]
    (tmp_path / "data/yfcc100m/yfcc100m_dataset.txt").write_text("\n".join(lines))
    (tmp_path / "data/yfcc15m/yfcc100m_subset_data.tsv").write_text("4\t1\tx\n5\t1\tx\n")
    shown = json.loads(run("make_yfcc15m.py", "--json", "--workers", "1", cwd=tmp_path))
    assert shown["num_images"] == 1
    assert Pool.open(tmp_path / "data/yfcc15m/pool").has_images
    run("make_yfcc100m.py", "--out", "elsewhere", cwd=tmp_path)
    assert Pool.open(tmp_path / "elsewhere").num_images == 2


@pytest.mark.slow
def test_the_benchmark_runs_and_both_ways_agree(tmp_path: Path) -> None:
    flags = ["--lines", "2000", "--memory-lines", "3000", "--repeats", "1"]
    flags += ["--folder", str(tmp_path), "--json", str(tmp_path / "x.json")]
    command = [sys.executable, "-m", "scripts.bench.yfcc_pool", *flags]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    found = json.loads((tmp_path / "x.json").read_text())["comparisons"]
    assert [each["title"].split()[-1] for each in found] == ["yfcc15m", "yfcc100m"] * 2
    assert all(int(each["timings"][0]["notes"]["peak MB"]) > 0 for each in found[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
