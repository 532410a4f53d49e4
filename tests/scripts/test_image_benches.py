"""The benchmarks of images and training do what their tables say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cit_curate.images.read import read_image
from cit_train.streaming.batches import open_batches
from scripts.bench import images as bench
from scripts.bench.end_to_end import Course
from scripts.bench.train_step import watched


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)) for _ in range(3)]
    return bench.montages(drawn, (300, 240), 64)


def test_montages_have_the_size_that_was_asked_for(jpegs: list[bytes]) -> None:
    assert {read_image(image).size for image in jpegs} == {(300, 240)}


def test_the_loader_reads_the_shards_that_were_written(
    jpegs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "OWN_STEPS", 1)
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0)
    bench.write_steps(tmp_path, jpegs, (bench.WARM_BATCHES + 1) * 64)
    with open_batches(bench.stream_of(tmp_path, fast=True), num_workers=0) as batches:
        turn = bench.loader_turn(batches, 1, [])
    assert turn.seconds > 0
    assert turn.processor > 0


def test_the_tables_of_writing_and_of_differences_are_whole(jpegs: list[bytes]) -> None:
    writing = bench.writing(jpegs[:8], 2, 1)
    assert len(writing.timings) == 4
    assert "kB/image written" in writing.table()
    assert "of 255" in bench.differences(jpegs[:4]).table()


def test_a_course_leaves_evaluations_out() -> None:
    course = Course(started=100.0)
    course.points = [(5, 2.0, 10.0), (10, 4.0, 30.0)]
    assert course.until(20.0) == (10, 4.0, 30.0)
    assert course.until(31.0) is None


def test_stages_are_added_up() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model, self.text_model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    model = Model()
    seconds = watched(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.text_model(torch.zeros(1, 2))
    assert seconds["text"] > 0
    assert seconds["vision"] == seconds["optimizer"] == 0
