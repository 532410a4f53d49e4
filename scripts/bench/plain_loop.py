"""A training loop with the original's habits, to be compared with: as plain as it can be written.

Every caption is padded to 32 tokens and goes through the tower in the order it comes in, duplicates
included; class names are embedded one at a time; the pool's captions are read again as JSON at each
outer step; images are decoded, cropped and put through the frozen tower at every update.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from cit_curate.captions import augment_tags
from cit_curate.images.read import ImageRejected, read_image
from cit_curate.pool.pool import Pool
from cit_curate.text_encoder.encoder import choose_device
from cit_curate.text_encoder.load import load_text_tower
from cit_train.config import RunConfig
from cit_train.inner_loop.losses import contrastive_loss
from cit_train.inner_loop.optim import learning_rate, parameter_groups, set_learning_rates
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.freeze import freeze, set_train_mode
from cit_train.models.towers import load_vision_tower
from cit_train.transforms import Normalizer, image_statistics, train_view
from scripts.bench.baseline import embed_padded, keep_plainly, pool_padded

Pair = dict[str, Any]


class PlainLoop:
    """One lane, in float32 on a CPU and in mixed precision on a GPU."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """Load the towers, and write the pool's captions as one JSON file."""
        self.config, self.device = config, choose_device(config.train.device)
        text, self.tokenizer = load_text_tower(config.text)
        tower = load_vision_tower(config.model.vision_encoder)
        self.model = build_dual_encoder(
            tower, text, projection_dim=config.model.projection_dim, seed=config.curate.seed
        )
        freeze(self.model.to(self.device), config.model)
        statistics = image_statistics(self.model.config.vision_config)
        self.normalizer = Normalizer(statistics.mean, statistics.std)
        self.side = statistics.side
        train = config.train
        groups = parameter_groups(
            self.model,
            lr=train.lr,
            text_lr=train.text_lr,
            projection_lr=train.projection_lr,
            weight_decay=train.weight_decay,
            projection_weight_decay=train.projection_weight_decay,
        )
        self.optimizer = torch.optim.AdamW(groups, lr=train.lr, eps=1e-8)
        self.scaler = torch.amp.GradScaler(enabled=self.device.type == "cuda")
        self.pool = Pool.open(config.pool) if isinstance(config.pool, str) and config.pool else None
        self.captions = folder / "captions.json"
        if self.pool is not None and not self.captions.exists():
            write_captions(self.pool, self.captions)
        self.rng = np.random.default_rng(config.curate.seed)
        self.scan = self._scan()

    @torch.no_grad()
    def pairs(self, *, curated: bool) -> list[Pair]:
        """The pairs of one outer step, in random order."""
        curate = self.config.curate
        entries = Path(self.config.metadata.metadata).read_text(encoding="utf-8").split("\n")
        self.model.eval()
        embed = partial(embed_padded, tower=self.model.text_model, tokenizer=self.tokenizer)
        rules = {"threshold": curate.threshold, "min_ratio": curate.min_ratio}
        names = torch.cat([embed([name]) for name in entries if name]) if curated else None
        seen: set[str] = set()
        kept: list[Pair] = []
        while len(kept) < curate.budget:
            batch = [next(self.scan) for _ in range(2 * curate.batch_size)]
            if names is not None:
                texts = embed([pair["caption"] for pair in batch])
                batch = [batch[row] for row in keep_plainly(texts, names, **rules)]
            for pair in batch:
                if pair["image_id"] not in seen and (image := self._image(pair)):
                    seen.add(pair["image_id"])
                    kept.append({**pair, "image": image})
        kept = kept[: curate.budget]
        return [kept[row] for row in self.rng.permutation(len(kept))]

    def step(self, captions: Sequence[str], images: Sequence[bytes], update: int) -> float:
        """One update; gives the loss."""
        train = self.config.train
        rate = learning_rate(
            update,
            lr=train.lr,
            min_lr=train.min_lr,
            warmup_updates=train.warmup_updates,
            max_updates=train.max_updates,
        )
        set_learning_rates(self.optimizer, rate)
        set_train_mode(self.model)
        views = [train_view(read_image(image), self.rng, side=self.side) for image in images]
        # float32 [batch, 3, side, side]
        pixels = self.normalizer(torch.stack(views).to(self.device))
        with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
            with torch.no_grad():
                pooled = self.model.vision_model(pixel_values=pixels).pooler_output.flatten(1)
            projected = self.model.visual_projection(pooled)
            pooled = pool_padded(captions, self.model.text_model, self.tokenizer)
            texts = self.model.text_projection(pooled)
        scale = self.model.logit_scale
        loss = contrastive_loss(projected, texts, scale, loss=train.loss)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss.detach())

    def _scan(self) -> Iterator[Pair]:
        """One text of each image, in a random order, without end; the JSON is read for a pass."""
        while True:
            images: list[dict[str, Any]] = json.loads(self.captions.read_text(encoding="utf-8"))
            for place in self.rng.permutation(len(images)):
                image = images[place]
                key = str(self.rng.choice(list(image["texts"])))
                caption = image["texts"][key]
                if key == "tag" and self.config.curate.augments_tags:
                    caption = augment_tags(caption, self.rng)
                pair = {name: image[name] for name in ("image_id", "image_uri", "source")}
                yield {**pair, "caption": caption}

    def _image(self, pair: Pair) -> bytes | None:
        assert self.pool is not None
        try:
            data = self.pool.image_bytes(pair["image_uri"], pair["source"])
            read_image(data)
        except ImageRejected:
            return None
        return data


def columns(pairs: Sequence[Pair]) -> tuple[list[str], list[bytes]]:
    """Captions and images of pairs."""
    return [pair["caption"] for pair in pairs], [pair["image"] for pair in pairs]


def write_captions(pool: Pool, path: Path) -> None:
    """A pool as one JSON list of images, each with its texts by text key."""
    images: dict[str, dict[str, Any]] = {}
    for part in sorted((pool.path / "pairs").glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            place = {name: row[name] for name in ("image_id", "image_uri", "source")}
            image = images.setdefault(row["image_id"], {**place, "texts": {}})
            image["texts"][row["text_key"]] = row["caption"]
    path.write_text(json.dumps(list(images.values())), encoding="utf-8")
