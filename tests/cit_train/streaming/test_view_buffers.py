"""Views in shared memory: nobody sees them change, and their memory is used again."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import picture

from cit_curate.run.paths import lane_prefix, step_folder
from cit_curate.run.shards import Sample, ShardWriter
from cit_train.streaming.batches import (
    BatchReader,
    BatchReaderConfig,
    LaneBatch,
    open_batches,
)
from cit_train.streaming.view_buffers import ReceivedBuffers, ViewBuffer, WorkerBuffers
from cit_train.streaming.views import ViewMaker

SIDE = 8


def taken(buffers: WorkerBuffers) -> ViewBuffer:
    buffer, _ = buffers.take(2, SIDE)
    buffer.pixels()[:] = buffer.number
    return buffer


def test_a_buffer_is_taken_again_once_nothing_refers_to_its_views() -> None:
    buffers = WorkerBuffers(0)
    views = taken(buffers).views()
    assert taken(buffers).number == 1
    part = views[1:].permute(0, 2, 3, 1)
    del views
    gc.collect()
    assert taken(buffers).number == 2
    assert torch.equal(part, torch.zeros((1, SIDE, SIDE, 3), dtype=torch.uint8))
    del part
    assert taken(buffers).number == 0


def test_views_are_channels_last_in_the_memory_of_their_worker() -> None:
    buffer, _ = WorkerBuffers(0).take(2, SIDE)
    views = buffer.views()
    assert views.shape == (2, 3, SIDE, SIDE)
    assert views.is_contiguous(memory_format=torch.channels_last)
    buffer.pixels()[1, 2, 3] = (4, 5, 6)
    assert views[1, :, 2, 3].tolist() == [4, 5, 6]


def test_a_buffer_is_new_to_the_trainer_once_and_is_known_by_worker_and_number() -> None:
    received = ReceivedBuffers()
    for worker in (0, 1):
        buffers = WorkerBuffers(worker)
        buffer, is_new = buffers.take(2, SIDE)
        assert is_new
        assert received.known(buffer).memory is buffer.memory
        buffer.free()
        again, is_new = buffers.take(2, SIDE)
        assert not is_new
        assert received.known(replace(again, memory=None)).memory is buffer.memory


def test_a_buffer_is_free_once_its_views_are_in_page_locked_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # which needs a GPU
    buffers = WorkerBuffers(0)
    buffer = taken(buffers)
    batch = LaneBatch(0, 0, 0, [], [], [], None, buffer=buffer).pin_memory()
    gc.collect()
    assert taken(buffers).number == buffer.number
    assert batch.buffer is None
    assert batch.views is not None
    assert batch.views.is_contiguous(memory_format=torch.channels_last)


def reader_of(folder: Path) -> BatchReader:
    """Batches of 4 pictures; no more than 5 of them can be read."""
    writer = ShardWriter(folder / step_folder(0), lane_prefix(0), pairs_per_shard=8)
    for number in range(20):
        image = picture(("red", "blue")[number % 2], "disc", number)
        writer.add(Sample(image, "png", "a disc", {"pair_key": f"{number}_title"}))
    writer.close()
    config = BatchReaderConfig(
        folder=folder,
        batch_size=4,
        pairs_per_shard=8,
        lanes=[0],
        seed=0,
        augments_tags=False,
        views=ViewMaker(side=SIDE, max_pixels=10**6),
        with_views=True,
        wait_seconds=60,
    )
    return BatchReader(config, 0)


def pixels_of(batches: list[LaneBatch]) -> list[np.ndarray]:
    found = [batch.views for batch in batches]
    return [views.numpy() for views in found if views is not None]


@pytest.mark.slow
@pytest.mark.parametrize("shares_memory", [True, False])
def test_batches_of_workers_are_those_of_one_process_however_many_are_held(
    tmp_path: Path, shares_memory: bool
) -> None:
    reader = reader_of(tmp_path)
    with open_batches(reader, num_workers=0) as batches:
        expected = [next(batches) for _ in range(5)]
    shared = BatchReader(replace(reader.config, shares_memory=shares_memory), 0)
    with open_batches(shared, num_workers=1) as batches:
        held = [next(batches) for _ in range(5)]
    assert [batch.pair_keys for batch in held] == [batch.pair_keys for batch in expected]
    for one, other in zip(pixels_of(held), pixels_of(expected), strict=True):
        np.testing.assert_array_equal(one, other)
