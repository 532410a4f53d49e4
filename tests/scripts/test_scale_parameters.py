"""The rates of the cost model can be measured."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from scripts.bench import scale_parameters
from scripts.bench.scale_parameters import PROBES, Rig, measure
from scripts.bench.scale_scenarios import PARAMETERS, Machine


def test_what_is_measured_is_what_was_measured_and_what_a_machine_has() -> None:
    names = [probe.__name__ for probe in PROBES]
    assert names == [*json.loads(PARAMETERS.read_text())["parameters"]]
    assert names == [field.name for field in fields(Machine)][: len(names)]


@pytest.mark.slow
def test_what_is_read_selected_and_embedded_can_be_measured(tmp_path: Path) -> None:
    names = ("forward_overhead_seconds", "tokenize_captions", "read_captions", "select_captions")
    probes = [getattr(scale_parameters, name) for name in names]
    measured = measure(probes, Rig(torch.device("cpu"), tmp_path))
    assert [*measured] == [*names]
    assert all(0 < row["lowest"] <= row["median"] <= row["highest"] for row in measured.values())
