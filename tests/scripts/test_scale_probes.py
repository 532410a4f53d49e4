import json
from pathlib import Path

import pytest

from scripts.bench.scale_parameters import main
from scripts.bench.scale_probes import PROBES


@pytest.mark.slow
def test_what_is_written_and_embedded_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "selection_row_bytes,select_captions,fsync_seconds,forward_overhead_seconds"
    out = tmp_path / "parameters.json"
    monkeypatch.setattr("sys.argv", ["scale_parameters", "--only", names, "--out", str(out)])
    main()
    measured = {row["name"]: row for row in json.loads(out.read_text())["parameters"]}
    assert {*measured} == {*names.split(",")} <= {probe.name for probe in PROBES}
    assert all(0 < row["low"] <= row["value"] <= row["high"] for row in measured.values())
