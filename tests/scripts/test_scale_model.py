import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench.scale_model import (
    TEXT_PARAMETERS,
    TRAINED,
    all_reduce_seconds,
    cost,
    forward_flops,
    scan_seconds,
)
from scripts.bench.scale_scenarios import (
    GPU_COUNTS,
    YFCC15M,
    Machine,
    Workload,
    gpus,
    offline,
    one_core,
)

A100 = gpus()["A100"]
# Every rate is 1 a second or free, so that the seconds can be counted by hand.
UNIT = replace(
    one_core(),
    gemm_flops=1.0,
    float32_flops=1.0,
    pass_tokens=2,
    embed_utilisation=1.0,
    search_utilisation=1.0,
    forward_overhead_seconds=3.0,
    tokenize_captions=1.0,
    read_captions=1.0,
    select_captions=1.0,
    ledger_bytes=1.0,
    cores=1,
    storage_bytes=math.inf,
    storage_total_bytes=math.inf,
)


def recipe(**changes: object) -> Workload:
    return replace(YFCC15M, **changes)  # type: ignore[arg-type]


def test_one_token_of_bert_base_costs_twice_its_weights_in_the_layers() -> None:
    layers = 12 * (4 * 768**2 + 2 * 768 * 3_072)
    attention = 12 * 4 * 768
    assert forward_flops(1) == 2 * layers + attention


@pytest.mark.slow
def test_the_text_tower_has_the_parameters_of_the_real_model() -> None:
    import torch
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        bert = BertModel(BertConfig())
    assert sum(each.numel() for each in bert.parameters()) == TEXT_PARAMETERS
    assert TEXT_PARAMETERS < TRAINED


def test_a_step_scans_what_the_pass_ratio_asks_for_whatever_the_pool_has() -> None:
    small, large = (recipe(captions=16 * size, pass_ratio=0.2) for size in (1e6, 1e9))
    assert small.captions_of_step == large.captions_of_step == 102_400 / 0.2
    assert small.selected == 16 * 102_400


def test_min_ratio_bounds_the_scan() -> None:
    bounded = recipe(captions=16 * 1e9, pass_ratio=0.0, min_ratio=0.01)
    assert bounded.captions_of_step == 102_400 / 0.01


def test_a_step_ends_short_after_one_pass() -> None:
    short = recipe(captions=16 * 1e6, pass_ratio=0.01)
    assert short.captions_of_step == 1e6
    assert short.selected == 16 * 10_000


def test_scan_seconds_are_those_counted_by_hand() -> None:
    seconds = scan_seconds(recipe(mean_tokens=1, metadata_entries=5), UNIT, 4.0)
    assert seconds["read"] == seconds["tokenise"] == seconds["select"] == 4.0
    # Four captions of one token are two passes of two tokens.
    assert seconds["embed"] == 4 * forward_flops(1) + 2 * 3.0
    assert seconds["search"] == 2 * 4 * 5 * 768


def test_a_single_process_adds_up_and_actors_run_beside_the_rules() -> None:
    serial = cost(offline("15 M", pipelined=False), A100, 1)
    assert serial.total_seconds == pytest.approx(
        sum(value for stage, value in serial.seconds.items() if stage != "storage")
    )
    actors = cost(offline("15 M"), A100, 1)
    assert actors.on_path == ("read", "tokenise", "embed", "search")
    assert actors.total_seconds < serial.total_seconds


def test_a_pass_is_divided_by_the_gpus_until_the_rules_of_one_process_are_full() -> None:
    workload = offline("100 B")
    one, four = cost(workload, A100, 1), cost(workload, A100, 4)
    assert four.total_seconds == pytest.approx(one.total_seconds / 4)
    full = [cost(workload, A100, count) for count in (256, 1_024)]
    assert [each.bottleneck for each in full] == ["select", "select"]
    assert full[0].total_seconds == full[1].total_seconds
    assert full[1].gpu_hours == 4 * full[0].gpu_hours


def test_a_slow_file_system_bounds_the_pass() -> None:
    slow = replace(A100, storage_total_bytes=1e6)
    assert cost(offline("2 B"), slow, 16).on_path == ("storage",)


def test_no_more_ranks_work_than_there_are_lanes() -> None:
    sixteen, many = cost(recipe(), A100, 16), cost(recipe(), A100, 1_024)
    assert many.ranks == 16
    assert many.total_seconds == sixteen.total_seconds
    assert many.gpu_hours == sixteen.gpu_hours


def test_lanes_that_the_ranks_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 ranks do not divide 16 lanes"):
        cost(recipe(), A100, 3)
    with pytest.raises(ValueError, match="num_gpus is 0"):
        cost(recipe(), A100, 0)


def test_workers_hide_decoding_and_without_them_it_adds_to_the_device() -> None:
    hidden = cost(recipe(num_workers=16), A100, 16)
    inside = cost(recipe(num_workers=0), A100, 16)
    assert "decode" not in hidden.on_path
    assert inside.seconds["decode"] == pytest.approx(16 * hidden.seconds["decode"])
    assert inside.total_seconds > hidden.total_seconds


def test_the_loss_matrix_is_that_of_the_global_batch_and_local_loss_divides_it() -> None:
    whole = cost(recipe(), A100, 16).loss_matrix_bytes
    assert whole == 4 * (16 * 1_024) ** 2
    assert cost(recipe(local_loss=True), A100, 16).loss_matrix_bytes == whole / 16


def test_an_all_reduce_costs_nothing_alone_and_twice_the_bytes_at_the_limit() -> None:
    machine: Machine = replace(A100, network_bytes=1.0, network_latency_seconds=0.0)
    assert all_reduce_seconds(5.0, machine, 1) == 0.0
    assert all_reduce_seconds(5.0, machine, 1_024) == pytest.approx(10.0, rel=1e-2)


def test_a_run_writes_its_shards_once_and_a_checkpoint_at_each_outer_step() -> None:
    found = cost(recipe(image_bytes=100.0), A100, 16)
    assert found.bytes_written["shards"] == 5_000 * 16 * 1_024 * 100.0
    one = cost(recipe(updates=100), A100, 16).bytes_written["checkpoints"]
    assert found.bytes_written["checkpoints"] == 50 * one
    assert found.bytes_kept < sum(found.bytes_written.values())


@given(
    st.sampled_from(GPU_COUNTS),
    st.floats(0.001, 1.0),
    st.integers(0, 16),
    st.booleans(),
)
def test_parts_are_positive_and_the_bottleneck_lies_on_the_path(
    num_gpus: int, pass_ratio: float, num_workers: int, pipelined: bool
) -> None:
    online = recipe(pass_ratio=pass_ratio, num_workers=num_workers)
    for workload in (online, replace(online, updates=0, pipelined=pipelined)):
        found = cost(workload, A100, num_gpus)
        assert all(value >= 0 for value in found.seconds.values())
        assert found.bottleneck in found.on_path
        assert found.total_seconds == pytest.approx(
            sum(found.seconds[stage] for stage in found.on_path)
        )
        assert 0 < found.device_busy <= 1 + 1e-9


@given(st.sampled_from(GPU_COUNTS[:-1]), st.sampled_from(["15 M", "100 B"]))
def test_more_gpus_never_make_a_pass_slower(num_gpus: int, size: str) -> None:
    workload = offline(size)
    fewer, more = cost(workload, A100, num_gpus), cost(workload, A100, num_gpus * 4)
    assert more.total_seconds <= fewer.total_seconds * (1 + 1e-9)
