"""Class names and prompts that installed libraries ship as data files; their code is not run."""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError

__all__ = ["clip_benchmark_names", "clip_benchmark_prompts", "imagenet21k_lemmas"]

# The version whose lists match the numbers in task_facts.py.
_CLIP_BENCHMARK = "clip-benchmark==1.6.2"


def clip_benchmark_names(key: str) -> list[str]:
    """The English class names of one data set, in the order of the class index.

    Args:
        key: A key of clip-benchmark's `en_classnames.json`.

    Raises:
        ConfigError: The library is missing or lacks the list; the message has the pip command.
    """
    return _clip_benchmark("en_classnames.json", key)


def clip_benchmark_prompts(key: str) -> list[str]:
    """The prompts of one data set, with `{}` for the name (clip-benchmark writes `{c}`).

    Raises:
        ConfigError: As `clip_benchmark_names`.
    """
    prompts = _clip_benchmark("en_zeroshot_classification_templates.json", key)
    return [prompt.replace("{c}", "{}") for prompt in prompts]


def imagenet21k_lemmas() -> list[list[str]]:
    """The WordNet lemmas of the 21,841 synsets of ImageNet-21k, in the order of their ids.

    They come from timm's `imagenet22k_synsets.txt` (one WordNet 3.0 id a line) and
    `imagenet_synset_to_lemma.txt` (id, tab, lemmas separated by `, `).

    Raises:
        ConfigError: timm lacks the files, or a synset's lemmas.
    """
    folder = _package_folder("timm", "timm") / "data" / "_info"
    ids = _read(folder / "imagenet22k_synsets.txt", "timm").split()
    lines = _read(folder / "imagenet_synset_to_lemma.txt", "timm").splitlines()
    lemmas_of = dict(line.split("\t", 1) for line in lines if "\t" in line)
    missing = [synset for synset in ids if synset not in lemmas_of]
    if missing:
        raise ConfigError(
            f"timm names no lemmas for {len(missing)} synsets ({missing[0]}, …); "
            "run: pip install --force-reinstall timm"
        )
    return [lemmas_of[synset].split(", ") for synset in ids]


def _clip_benchmark(file: str, key: str) -> list[str]:
    folder = _package_folder("clip_benchmark", "'cit[tasks]'")
    entries = _parsed(folder / "datasets" / file)
    if key not in entries:
        raise ConfigError(
            f"the installed clip-benchmark has no {key!r} in {file}; "
            f"run: pip install {_CLIP_BENCHMARK}"
        )
    return [" ".join(name.split()) for name in entries[key]]


def _package_folder(module: str, requirement: str) -> Path:
    # For a top-level name find_spec only locates the module: its code is not run.
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        library = module.replace("_", "-")
        raise ConfigError(
            f"these class names come with the library {library}, which is not installed; "
            f"run: pip install {requirement}"
        )
    return Path(folders[0])


@functools.cache
def _parsed(path: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(_read(path, _CLIP_BENCHMARK))
    return entries


def _read(path: Path, requirement: str) -> str:
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing from its library; "
            f"run: pip install --force-reinstall --no-deps {requirement}"
        )
    return path.read_text(encoding="utf-8")
