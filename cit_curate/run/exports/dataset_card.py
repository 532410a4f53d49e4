"""The dataset card of an export: what `datasets` needs to read its shards, and a word for people.

Without it, `datasets` looks at five samples and refuses shards whose images have several formats.
https://huggingface.co/docs/hub/datasets-cards
"""

from collections.abc import Sequence

from cit_curate.run.paths import MANIFESTS

CARD_NAME = "README.md"

_JSON = {
    "pair_key": "string",
    "image_id": "string",
    "text_key": "string",
    "count": "int64",
    "metadata_text": "string",
    "reason": "string",
    "pool": "string",
    "similarity": "float64",
    "original_format": "string",
}


def dataset_card(
    tars: Sequence[str], num_pairs: int, *, suffixes: Sequence[str], has_several_pools: bool
) -> str:
    """The card of a folder of shards, as Markdown with a YAML header.

    Args:
        tars: The names of the shards, in order.
        num_pairs: The samples in all of them.
        suffixes: The suffixes of their images.
        has_several_pools: Whether the `.json` of a sample has `pool`.
    """
    features: list[str] = []
    for suffix in suffixes:
        features += [f"  - name: {suffix}", "    dtype: image"]
    features += ["  - name: json", "    struct:"]
    for name, kind in _JSON.items():
        if name != "pool" or has_several_pools:
            features += [f"    - name: {name}", f"      dtype: {kind}"]
    for name in ("txt", "__key__", "__url__"):
        features += [f"  - name: {name}", "    dtype: string"]
    last = len(tars) - 1
    shards = f"pairs-{{000000..{last:06d}}}.tar" if last > 0 else "pairs-000000.tar"
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files: pairs-*.tar",
        "dataset_info:",
        "  features:",
        *features,
        "---",
        "",
        f"{num_pairs:,} pairs of image and caption in {len(tars):,} WebDataset shards, curated by",
        "cit. Of each sample, `.txt` is the caption, and `.json` says how often it was used, how",
        "similar it was to which class name, and the format that its image had.",
        "",
        "    datasets.load_dataset(FOLDER)",
        f"    webdataset.WebDataset('FOLDER/{shards}')",
        f"    open_clip: --train-data 'FOLDER/{shards}' --train-num-samples {num_pairs}",
        "",
        f"`{MANIFESTS}` has the size and SHA-256 of each shard, and the pairs that were set aside.",
    ]
    return "\n".join(lines) + "\n"
