"""The settings of a training run, which is a recipe with some fields replaced."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.errors import ConfigError

Loss = Literal["cit", "clip"]
VisionFeatures = Literal["live", "cached"]
TrainVision = Literal["none", "head", "all"]
TrainText = Literal["pool", "all"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
VisionEngine = Literal["auto", "torch", "openvino"]
VisionPrecision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The dual encoder besides its text tower (docs/method.md, "Inner loop")."""

    vision_encoder: str = "package:efficientnet-lite0"
    """Vision tower: Hugging Face or timm directory or model id (org/name or
    hf://org/name@revision), or packaged weights."""
    projection_dim: int = 512
    """Dimensions of the space that images and captions share."""
    train_vision: TrainVision = "head"
    """Trained part of the vision tower: its head where it has one (MoCo), none, or all."""
    train_text: TrainText = "all"
    """Trained part of the text tower: its pooler, or all."""
    init_from: str = ""
    """Dual encoder to start from, towers and projections: a run, a checkpoint's folder or a
    released checkpoint. Left out, new projections on --vision-encoder and --text-encoder."""

    def __post_init__(self) -> None:
        _require(self, "projection_dim", lambda value: value >= 1, "be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The inner loop (docs/method.md, "Inner loop")."""

    max_updates: int = 5_000
    """Updates of the whole run."""
    loss: Loss = "cit"
    """Image to text only (cit), or the mean of both directions (clip)."""
    lr: float = 5e-4
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    text_lr: float | None = None
    """Peak learning rate of the text tower; --lr when left out."""
    projection_lr: float | None = None
    """Peak learning rate of the two projections and the logit scale; --lr when left out."""
    weight_decay: float = 0.2
    """Weight decay of AdamW; 1-dimensional parameters have none."""
    projection_weight_decay: float = 1.0
    """Weight decay of the two projections."""
    warmup_div: float = 25.0
    """The linear warm-up takes max_updates / warmup_div updates."""
    clip_grad: float | None = None
    """Largest norm of the gradient over all parameters; no limit when left out."""
    accumulate: int = 1
    """Batches of each lane in one update, each with its own loss; the update uses their mean."""
    vision_features: VisionFeatures = "live"
    """Run the frozen vision tower on a new crop at every update (live), or cache its features of a
    fixed set of crops per image (cached), which makes a CPU fast enough."""
    cached_views: int = 4
    """Crops per image with cached vision features."""
    feature_cache: str = ""
    """Folder of the cached vision features, shared by runs; RUN/features when left out."""
    feature_cache_bytes: int | None = 50_000_000_000
    """Disk space of that folder; the oldest features are removed first, and computed again when
    needed. None = no limit."""
    vision_engine: VisionEngine = "auto"
    """What computes cached vision features: PyTorch (torch), OpenVINO (openvino), which is for a
    CPU and two to three times as fast (pip install "cit[fast-cpu]"), or auto, OpenVINO where it is
    installed."""
    vision_precision: VisionPrecision = "float32"
    """Precision of cached vision features: float32, or bfloat16 on a processor that has it."""
    fast_views: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the crop needs no more, and resize with vector
    instructions. The pixels differ; where a JPEG is reduced, visibly so at edges."""
    precision: Precision = "auto"
    """float16 = mixed precision with a gradient scaler, bfloat16 = mixed precision without one,
    float32, or auto = float16 on a GPU."""
    text_buckets: int = 1
    """Passes of the text tower over captions of similar length, instead of one pass that is padded
    to the longest of the batch: less computation, other random numbers for dropout."""
    fused_adamw: bool = False
    """AdamW in one pass over the weights: the same rule, rounded differently in the last bit."""
    micro_batch: int | None = None
    """Pairs of a lane that pass through the towers at once, for batches that do not fit into
    memory. The gradient stays that of the whole batch, at the cost of a second forward pass."""
    local_loss: bool = False
    """With several ranks, each computes only its own rows of the logits: the same loss in a
    fraction of the memory."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """Compute threads of a rank on a CPU; OMP_NUM_THREADS is ignored. Sums over another number of
    threads differ in the last bit. 0 = the cores of this machine, shared by its ranks."""
    num_workers: int = 0
    """Processes that read shards and decode images; 0 = within the training process."""
    ahead: int = 0
    """0 selects with the current text encoder. 1 scores the next outer step's captions while this
    one trains, with the text encoder of its start, so selections are one outer step stale."""
    ahead_workers: int = 1
    """Processes that score for --ahead, with one thread each; one is enough for a GPU."""
    curate_device: str = ""
    """Device of --ahead's processes, such as cuda:1; that of training when left out."""
    pairs_per_shard: int = 512
    """Pairs of one WebDataset tar; training begins when the first tar is closed."""
    keep_shards: str = "2"
    """Outer steps whose shards are kept: a number, all or none; others can be written again."""
    shard_image_side: int = 0
    """Images with a longer shorter side are written to the shards as JPEGs of this side, which
    keeps large selections small on disk; 0 = always an image's own bytes."""
    max_pixels: int = 64_000_000
    """Images with more pixels are rejected by their header."""
    tensorboard: bool = False
    """Write TensorBoard event files to RUN/tensorboard too; needs `pip install cit[tensorboard]`.
    """
    stream_seconds: float = 600.0
    """Longest wait of training for the next shard."""
    save_every: int | None = None
    """Updates between two saves within an outer step; left out, saves go by time alone."""
    save_minutes: float | None = 15.0
    """Minutes between two saves within an outer step; None = save at its end alone. A killed run
    resumes from the last save; one that a signal stops always saves first."""
    peer_seconds: float = 120.0
    """Longest silence of a rank before the others give it up."""
    barrier_seconds: float = 7200.0
    """Longest wait of the ranks for the slowest one to curate or evaluate."""

    def __post_init__(self) -> None:
        names = "max_updates cached_views pairs_per_shard max_pixels accumulate text_buckets"
        _require(self, f"{names} ahead_workers", lambda value: value >= 1, "be at least 1")
        names = "min_lr weight_decay projection_weight_decay num_workers threads shard_image_side"
        _require(self, names, lambda value: not value < 0, "not be negative")
        if self.ahead not in (0, 1):
            raise ConfigError(
                f"--ahead is {self.ahead}; it must be 0, the current text encoder, or 1, that of "
                "the previous outer step"
            )
        _require(self, "clip_grad", lambda value: value > 0, "be above 0")
        _require(self, "warmup_div", lambda value: value > 1, "be above 1")
        names = "stream_seconds peer_seconds barrier_seconds save_minutes"
        _require(self, names, lambda value: value > 0, "be above 0")
        names = "save_every micro_batch feature_cache_bytes"
        _require(self, names, lambda value: value >= 1, "be at least 1")
        names = "lr text_lr projection_lr"
        _require(self, names, lambda value: 0 < value < 10, "be above 0 and below 10")
        if self.keep_shards not in ("all", "none") and not self.keep_shards.isdigit():
            raise ConfigError(f"--keep-shards is {self.keep_shards!r}; give a number, all or none")

    @property
    def warmup_updates(self) -> float:
        """Updates of the linear warm-up."""
        return self.max_updates / self.warmup_div

    @property
    def num_kept_shards(self) -> int | None:
        """Outer steps whose shards are kept; None = all."""
        if self.keep_shards == "all":
            return None
        return 0 if self.keep_shards == "none" else int(self.keep_shards)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Zero-shot evaluation while training (docs/method.md, "Evaluation")."""

    eval_data: str = ""
    """Folder with one sub-folder of images per class, or with a labels.csv of paths and labels.
    With --eval-task, the folder of the tasks' data; left out, nothing is evaluated."""
    eval_task: str = ""
    """Built-in task, such as imagenet: its classes, prompts and metric; its data are below
    --eval-data as for `cit eval`."""
    eval_classes: str = ""
    """File with the class names, if the sub-folders are not named after them; as `cit eval
    --classes`."""
    eval_every: int = 500
    """Updates between two evaluations; the last update is always evaluated."""
    prompts: tuple[str, ...] = ("a photo of a {}",)
    """Prompt templates of the class names; several are averaged. With --eval-task, they replace
    the task's."""
    use_template: bool = True
    """Put the class names into prompts; off: the name alone."""
    extra_prompts: bool = False
    """Two further prompts for ImageNet, as in the original when it evaluates on ImageNet alone."""
    best_metric: Literal["accuracy", "mean_per_class"] = "accuracy"
    """Metric that chooses `checkpoints/best`; with --eval-task it is the task's own."""
    patience: int = 0
    """Stop after this many evaluations without a new best one; 0 = never."""

    def __post_init__(self) -> None:
        _require(self, "eval_every", lambda value: value >= 1, "be at least 1")
        _require(self, "patience", lambda value: value >= 0, "not be negative")
        if self.patience and not self.eval_data:
            raise ConfigError(
                "--patience counts evaluations; give --eval-data, the images to evaluate on"
            )
        if not self.prompts:
            raise ConfigError("--prompts is empty; the plain one is {}")
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ConfigError(f"--prompts: {prompt!r} needs {{}} once, for the class name")
        if self.eval_task and not self.eval_data:
            raise ConfigError(
                f"--eval-task {self.eval_task} needs --eval-data, the folder with the tasks' data"
            )
        if self.extra_prompts and self.eval_task != "imagenet":
            raise ConfigError("--extra-prompts are ImageNet's; give --eval-task imagenet with it")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: every field of every part is a flag of `cit train`."""

    pool: str | tuple[str, ...] = ""
    """Folder made by `cit pool build`; or several, each with its share of the scanned captions:
    --pool A=0.7 --pool B=0.3, or NAME:A=0.7 to give one another name."""
    selection: str = ""
    """Run whose selected pairs are all trained on in turn, instead of a new curation: a run of
    `cit curate`, `cit train` or `cit import-counts` on the same pool."""
    max_sample: int | None = None
    """Number of the pool's first images to use; all when left out."""
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(self, "max_sample", lambda value: value >= 1, "be at least 1")
        if self.model.train_vision == "all" and self.train.vision_features == "cached":
            raise ConfigError(
                "--train-vision all changes the vision tower, so its features cannot be cached; "
                "take --vision-features live, or --train-vision none"
            )
        if self.train.ahead and self.curate_as.curation != "exact":
            other = "--selection" if self.selection else f"--curation {self.curate.curation}"
            raise ConfigError(
                f"--ahead 1 scores every caption, which {other} does not; leave one of them out"
            )
        # A worker reads on when its next batch is requested; until then its shards must stay.
        kept, workers = self.train.num_kept_shards, self.train.num_workers
        if kept is not None and workers:
            kept_batches = kept * self.batches_per_step * self.curate.lanes
            if kept_batches < 3 * workers:
                raise ConfigError(
                    f"--num-workers {workers} may fall behind the {kept_batches} batches of the "
                    "shards that are kept; raise --keep-shards, or take --keep-shards all"
                )

    @property
    def batches_per_step(self) -> int:
        """Batches that each lane trains on in a full outer step."""
        return self.curate.curate_every * self.train.accumulate

    @property
    def pairs_per_update(self) -> int:
        """Pairs of each lane in one update."""
        return self.curate.batch_size * self.train.accumulate

    @property
    def budget(self) -> int:
        """Pairs that each lane collects in one outer step."""
        return self.curate.curate_every * self.pairs_per_update

    @property
    def curate_as(self) -> CurateConfig:
        """The curation rules in effect: with a selection, all its pairs in turn, uncurated."""
        if not self.selection:
            return self.curate
        return dataclasses.replace(self.curate, curation="none", texts="every")

    @property
    def evaluate_as(self) -> EvaluationConfig:
        """The evaluation in effect: no extra prompts for metadata of more than one task."""
        if self.metadata.metadata not in ("mt", "imagenet21k"):
            return self.evaluation
        return dataclasses.replace(self.evaluation, extra_prompts=False)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """An evaluation recipe: a model and the tasks it is evaluated on."""

    model: str
    """A run, a checkpoint's folder, or a released checkpoint."""
    tasks: str
    """Names of tasks, separated by commas; all = the 26."""


def flat(config: RunConfig) -> dict[str, Any]:
    """The fields of all parts by name, as in `config.json`."""
    values: dict[str, Any] = {}
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            values |= dataclasses.asdict(value)
        else:
            values[field_.name] = value
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _require(config: object, names: str, is_valid: Callable[[Any], bool], rule: str) -> None:
    """Refuse the first field in `names` with an invalid value; None is always valid."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not is_valid(value):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must {rule}")


def replace_fields(config: RunConfig, **changes: Any) -> RunConfig:
    """The config with fields of any part replaced by name.

    Raises:
        ConfigError: No part has such a field, or a value is out of range.
    """
    left = dict(changes)
    parts: dict[str, Any] = {}
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            if field_.name in left:
                parts[field_.name] = left.pop(field_.name)
            continue
        names = {inner.name for inner in dataclasses.fields(value)} & left.keys()
        parts[field_.name] = dataclasses.replace(value, **{name: left.pop(name) for name in names})
    if left:
        raise ConfigError(f"a run has no field {', '.join(sorted(left))}")
    return dataclasses.replace(config, **parts)
