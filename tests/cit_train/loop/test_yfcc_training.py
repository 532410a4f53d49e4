"""The paper's recipe on YFCC in miniature: metadata, zips, MoCo's head, lanes, counts and back."""

import json
import zipfile
from pathlib import Path
from urllib.parse import quote_plus

import numpy as np
import pytest
import torch
from tiny import COLOURS, SHAPES, make_config, picture

from cit_curate.pool.build.ingest import build_pool
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.exports.export import export_counts
from cit_curate.run.ledger import Run
from cit_curate.sources.source import yfcc_source
from cit_curate.sources.yfcc.format import COLUMNS
from cit_curate.sources.yfcc.source import YfccSource
from cit_train.config import RunConfig, flat, replace_fields
from cit_train.models import MocoConfig, MocoModel
from cit_train.outer_loop import train
from cit_train.recipes import yfcc15m_in1k_mocob16

# Images of two zips: 00/000.zip and 01/234.zip.
IDS = [*range(150), *range(1_234_000, 1_234_150)]


@pytest.fixture(scope="module")
def yfcc(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Some 300 coloured shapes as YFCC has them; every third line is not in CLIP's list."""
    folder = tmp_path_factory.mktemp("yfcc")
    rng = np.random.default_rng(5)
    lines = []
    for image in IDS:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        number = f"{image:08d}"
        archive = folder / "images" / number[:2] / f"{number[2:5]}.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive, "a") as members:
            members.writestr(f"{number[5:]}.jpg", picture(colour, shape, image))
        cells = dict.fromkeys(COLUMNS, "x") | {
            "line_number": str(image),
            "title": quote_plus(f"a <b>{colour}</b> {shape} http://x.org/{image}"),
            "description": "",
            "user_tags": f"{colour},{shape}" if image % 2 else "",
            "machine_tags": "",
        }
        lines.append("\t".join(cells.values()))
    (folder / "dataset.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "ids.npy", np.array(IDS))
    listed = [image for image in IDS if image % 3]
    (folder / "subset.tsv").write_text("".join(f"{image}\t1\tff\n" for image in listed))
    source = YfccSource(
        format="yfcc15m",
        metadata=folder / "dataset.txt",
        image_ids=folder / "ids.npy",
        subset=folder / "subset.tsv",
    )
    build_pool([yfcc_source(source)], folder / "pool", columns=None, clean="yfcc")
    return Pool.open(folder / "pool")


def recipe(world: Path, yfcc: Pool, folder: Path) -> RunConfig:
    """The recipe with what does not fit here made small; its rules stay."""
    torch.manual_seed(4)
    small = MocoConfig(
        config_name="vit_tiny_patch16_224", image_size=32, projector_size=24, hidden_size=12
    )
    MocoModel(small).save_pretrained(folder / "moco")
    own = flat(make_config(world))
    names = ("metadata", "text_encoder", "projection_dim", "eval_data", "device", "lr")
    return replace_fields(
        yfcc15m_in1k_mocob16(),
        **{name: own[name] for name in names},
        pool=str(yfcc.path),
        vision_encoder=str(folder / "moco"),
        eval_task="",
        extra_prompts=False,
        threshold=0.5,
        min_ratio=0.25,
        batch_size=8,
        lanes=2,
        curate_every=2,
        max_updates=4,
    )


@pytest.mark.slow
def test_the_recipe_trains_on_yfcc_and_its_counts_come_back(
    world: Path, yfcc: Pool, tmp_path: Path
) -> None:
    assert yfcc.num_images == 200
    run = train(recipe(world, yfcc, tmp_path), tmp_path / "run")
    counts = run.counts()
    assert sum(counts.values()) == 4 * 2 * 8
    for key in counts:
        image_id, text_key = key.split("_")
        assert len(image_id) == 8
        assert int(image_id) % 3
        assert text_key in ("title", "tag")
    assert not len(run.read("rejects"))
    captions = {row["caption"] for row in yfcc.read_row_groups([0]).to_pylist()}
    assert not any("<" in caption or "http" in caption for caption in captions)
    export_counts(run, tmp_path / "counts.json")
    assert json.loads((tmp_path / "counts.json").read_text()) == counts
    import_counts(tmp_path / "counts.json", yfcc, tmp_path / "imported")
    assert Run.open(tmp_path / "imported").counts() == counts


@pytest.mark.slow
def test_an_imported_selection_is_trained_on(world: Path, yfcc: Pool, tmp_path: Path) -> None:
    chosen = {f"{image:08d}_title": 2 for image in IDS[:60] if image % 3}
    (tmp_path / "published.json").write_text(json.dumps(chosen))
    import_counts(tmp_path / "published.json", yfcc, tmp_path / "published")
    config = replace_fields(recipe(world, yfcc, tmp_path), selection=str(tmp_path / "published"))
    run = train(config, tmp_path / "run")
    assert run.counts().keys() <= chosen.keys()
    assert sum(run.counts().values()) == 4 * 2 * 8
