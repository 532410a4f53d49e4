"""The benchmark of the first batch times functions that exist."""

from scripts.bench.first_batch import cit_stages


def test_every_stage_is_a_function_of_cit_train() -> None:
    assert [name for owner, name, _ in cit_stages() if not callable(getattr(owner, name))] == []
