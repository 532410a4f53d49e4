"""What the three packages hand on, and that asking for a package loads none of it."""

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "indexes": "ExactIndex FaissIndex MetadataIndex SearchResult build_index",
    "cit_curate": (
        "BadInputError CitError Columns ConfigError CurateConfig Curator DamagedError EngineConfig "
        "MetadataConfig MetadataEntry NotFiniteError PeerLostError Pool PoolMixture QueryError "
        "ResourceError Run ShortfallError TextEncoder TextTowerConfig build_report curate "
        "export_counts export_webdataset import_counts keep_similar load_metadata subset_pool"
    ),
    "cit_train": (
        "EvalConfig EvaluationConfig ModelConfig RunConfig StoppedError TrainConfig Watcher "
        "dual_encoder_from_config load_dual_encoder recipes replace_fields sweeps train"
    ),
}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_hands_on_these_names_and_each_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == PUBLIC[package].split()
    for name in module.__all__:
        assert getattr(module, name).__name__ in {name, f"{package}.{name}"}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_name_that_is_not_there_is_an_attribute_error(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Pol'"):
        module.Pol  # noqa: B018 - the look-up is what fails


def test_a_package_loads_nothing_until_a_name_is_asked_for() -> None:
    code = (
        "import sys, indexes, cit_curate, cit_train\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'duckdb', 'faiss'} & sys.modules.keys()\n"
        "cit_curate.MetadataConfig, cit_train.RunConfig, cit_train.recipes\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'duckdb', 'faiss'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
