"""Worker processes: results in order, and an error when one is killed."""

import os

import pytest
from spawned import kill_itself, process_id

from cit_curate.engines.workers import available_cpus, open_workers
from cit_curate.errors import ResourceError


def test_one_worker_is_this_process():
    with open_workers(1) as mapped:
        assert set(mapped(process_id, range(3))) == {os.getpid()}
    assert available_cpus() >= 1


@pytest.mark.slow
def test_results_come_in_the_order_of_the_tasks_from_other_processes():
    with open_workers(2) as mapped:
        assert list(mapped(abs, range(-50, 0))) == list(range(50, 0, -1))
        assert os.getpid() not in set(mapped(process_id, range(20)))


@pytest.mark.slow
def test_a_killed_worker_is_a_resource_error():
    with (
        pytest.raises(ResourceError, match="one of 2 workers was killed"),
        open_workers(2) as mapped,
    ):
        list(mapped(kill_itself, range(4)))
