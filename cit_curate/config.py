"""The configuration of curation: frozen, checked, and of the standard library only."""

from dataclasses import dataclass, fields
from typing import Literal

from cit_curate.errors import ConfigError

Pooling = Literal["pooler", "mean", "cls"]
Collection = Literal["unique", "multiset"]
Order = Literal["shuffled", "sequential"]
Texts = Literal["one", "every"]
IndexKind = Literal["auto", "exact", "flat", "ivf", "hnsw"]
Shortfall = Literal["error", "train"]
Curation = Literal["exact", "two-pass", "cascade", "none"]
ProxyKind = Literal["both", "tokens", "int8"]
Engine = Literal["local", "ray"]
Cleaning = Literal["none", "yfcc"]
Quoting = Literal["auto", "csv", "none"]
OnDamaged = Literal["stop", "skip"]
SourceFormat = Literal[
    "csv", "tsv", "json", "jsonl", "parquet", "arrow", "folder", "webdataset", "huggingface"
]
Format = Literal["auto"] | SourceFormat
YfccFormat = Literal["yfcc15m", "yfcc100m"]

# The defaults of the flags of `cit query`, `cit export` and `cit import-counts`.
QUERY_TIMEOUT_SECONDS = 60.0
QUERY_MAX_ROWS = 1_000_000
COUNT_SUFFIXES = (".json", ".parquet", ".csv")
CsvGuard = Literal["formulas", "off"]
ImageFormat = Literal["auto", "jpg", "png", "webp"]
# Dead links cost a download some of a published list, seldom half of it. When more is missing, it
# is usually another pool, or one with image ids in another form.
MAX_MISSING_RATIO = 0.5
MAX_REJECT_RATIO = 0.01


@dataclass(frozen=True, kw_only=True)
class MetadataConfig:
    """The class names to curate for, and the prompts for each (docs/method.md)."""

    metadata: str = ""
    """Class names: a built-in list (imagenet, mt, …: `cit metadata list`); or a file of them, one a
    line, synonyms separated by `|`; or JSON; or a CSV, with --metadata-column."""
    metadata_column: str = ""
    """Column that holds the entries, when --metadata is a CSV, a TSV or JSON objects."""
    templates: tuple[str, ...] = ("{}",)
    """Prompts of each entry, with {} for its name; the vectors of several are averaged."""
    template_metadata: bool = False
    """Use the prompts of each entry's task instead of --templates."""

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ConfigError(f"--templates: {template!r} needs {{}} once, for the class name")
        if not self.templates:
            raise ConfigError("--templates is empty; the plain one is {}")
        if self.template_metadata and self.templates != ("{}",):
            raise ConfigError(
                "--template-metadata uses the prompts of the task; it cannot go with --templates"
            )


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The text tower that embeds captions and metadata, and its pooled text."""

    text_encoder: str = "princeton-nlp/unsup-simcse-bert-base-uncased"
    """Hugging Face directory or model id (org/name or hf://org/name@revision), or weights inside
    an installed package (package:minilm)."""
    pooling: Pooling = "pooler"
    """Pooled text: the model's own pooler output, the mean over tokens, or the first token."""
    max_text_length: int = 32
    """Captions and prompts are cut to this many tokens."""
    project_embeddings: bool = False
    """Compare captions and metadata after the text projection, not before it."""
    compile: bool = False
    """Compile the text tower with torch.compile, for curation and for training; on a CPU that needs
    a C++ compiler. Vectors and gradients are rounded differently in their last bits."""
    vector_cache_bytes: int | None = 2_000_000_000
    """Disk space of the vectors that are kept in POOL/vectors, so that no text is embedded twice
    under one encoder; those not used for longest are removed first. 0 = none are kept, None = no
    limit."""

    def __post_init__(self) -> None:
        if not self.text_encoder:
            raise ConfigError(
                "--text-encoder is empty; give a model id, a directory or package:minilm"
            )
        if not 4 <= self.max_text_length <= 512 or self.max_text_length % 4:
            raise ConfigError(
                f"--max-text-length is {self.max_text_length}; it is a multiple of 4 from 4 to 512"
            )
        if self.vector_cache_bytes is not None and self.vector_cache_bytes < 0:
            raise ConfigError(
                f"--vector-cache-bytes is {self.vector_cache_bytes}; it must not be negative"
            )


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """The rules of one outer step (docs/method.md, "Outer step")."""

    curation: Curation = "exact"
    """Score every scanned caption (exact); or score it in bfloat16 and again, if it may be kept, in
    float32, which keeps the same pairs and is for a processor with AMX or AVX512_BF16 (two-pass);
    or only those that cheap guesses cannot rule out, and a random part of the others, to estimate
    what was missed (cascade); or take all pairs in the order of the scan (none)."""
    proxy: ProxyKind = "both"
    """Guesses of a cascade: from the vectors of single tokens (tokens), then the text tower in int8
    (int8, on a CPU only), or one of the two alone."""
    target_recall: float = 0.99
    """Share of what exact curation keeps that a cascade should keep; its audit estimates what it
    kept."""
    audit_ratio: float = 0.005
    """Share of the captions ruled out by a cascade that is scored anyway, at random; ten times as
    many of those that were close."""
    calibration_captions: int = 4096
    """Captions at the start of each outer step and lane that a cascade scores in full, to fit its
    guesses."""
    threshold: float = 0.55
    """Captions whose best cosine over the metadata is strictly above this are kept."""
    min_ratio: float = 0.003
    """When a smaller share of a scanned batch passes, its best int(min_ratio * n) are kept."""
    keep_ratio: float = 0.0
    """Instead of threshold and min_ratio: keep this share of what is scanned, the best of each
    scanned batch, whatever the scale of the similarities. 0 = off."""
    balance: float = 0.0
    """The most pairs of a metadata entry in an outer step, as a multiple of its equal share; when
    the passes end before the budget is full, the next best are kept. 0 = no limit."""
    anchor: float = 0.0
    """Choose the best by the similarities under today's text encoder and under that of the start,
    each standardised: the weight of the latter, from 0 to 1. With --keep-ratio."""
    mix_random: float = 0.0
    """Share of the kept pairs that is random."""
    exclude: tuple[str, ...] = ()
    """Pairs that are never kept: files of pair keys or image ids (.txt, .csv, .parquet), or SQL
    predicates over a pair's columns, such as "caption ILIKE '%logo%'"."""
    include: tuple[str, ...] = ()
    """Pairs that are kept whatever their similarity, named as for --exclude."""
    policy: str = ""
    """A policy of your own, package.module:function or file.py:function (docs/policies.md)."""
    batch_size: int = 1024
    """Pairs of one update and lane; captions are scanned in batches of twice this."""
    curate_every: int = 100
    """Updates between two outer steps; each collects curate_every x batch_size pairs a lane."""
    collection: Collection = "unique"
    """Count a pair once per outer step (unique), or let it repeat (multiset)."""
    order: Order = "shuffled"
    """Order of the scan: a new permutation every pass, or the order of the pool."""
    texts: Texts = "one"
    """One random text of an image at each visit, or every text of it."""
    aug_tag: bool | None = None
    """Shuffle and re-join the words of tag captions at each visit.
    Left out, it is on when the order is shuffled, off when it is sequential."""
    skip_until: int = 0
    """Before this update every pair passes."""
    max_passes: int = 1
    """Passes over the pool that one outer step may make to fill its budget."""
    on_shortfall: Shortfall = "error"
    """When the passes did not fill the budget: stop with exit code 3, or train on fewer pairs."""
    index: IndexKind = "auto"
    """Search over the metadata: exact by torch (exact) or FAISS (flat), with equal results; auto:
    flat where FAISS is installed for the device. Or approximate by FAISS (ivf, hnsw): other
    selections."""
    lanes: int = 1
    """Independent scans of the pool, each with its own budget; the original's number of ranks."""
    seed: int = 0
    """Seed of the scan order, text choice, augmentation, dropout and initialisation."""

    def __post_init__(self) -> None:
        if not -1.0 <= self.threshold <= 1.0:
            raise ConfigError(f"--threshold is {self.threshold:g}; it is a cosine, from -1 to 1")
        if not 0.0 <= self.min_ratio <= 1.0:
            raise ConfigError(f"--min-ratio is {self.min_ratio:g}; it is a share, from 0 to 1")
        self._check_policies()
        for name in ("batch_size", "curate_every", "max_passes", "lanes"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {getattr(self, name)}; it must be at least 1")
        if not 0.5 <= self.target_recall < 1.0:
            raise ConfigError(
                f"--target-recall is {self.target_recall:g}; it is from 0.5 to below 1"
            )
        if not 0.0 < self.audit_ratio <= 1.0:
            raise ConfigError(f"--audit-ratio is {self.audit_ratio:g}; it is a share above 0")
        if self.calibration_captions < 1024:
            raise ConfigError(
                f"--calibration-captions is {self.calibration_captions}; it is at least 1024"
            )
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; it must not be negative")

    @property
    def policies(self) -> tuple[str, ...]:
        """The names of the settings that change CiT's rule."""
        names = ("keep_ratio", "balance", "anchor", "mix_random", "exclude", "include", "policy")
        return tuple(name for name in names if getattr(self, name))

    def _check_policies(self) -> None:
        for name in ("keep_ratio", "anchor"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {getattr(self, name):g}; it is from 0 to 1")
        if not 0.0 <= self.mix_random < 1.0:
            raise ConfigError(
                f"--mix-random is {self.mix_random:g}; it is a share, from 0 to below 1"
            )
        if self.balance and self.balance < 1.0:
            raise ConfigError(
                f"--balance is {self.balance:g}; entries cannot all have less than their equal "
                "share: it is at least 1, or 0 for no limit"
            )
        if self.anchor and not self.keep_ratio:
            raise ConfigError(
                "--anchor ranks captions by standardised similarities, for which --threshold has "
                "no meaning: give --keep-ratio"
            )
        if self.policies and self.curation in ("cascade", "two-pass"):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in self.policies)
            raise ConfigError(
                f"{flags}: policies need the similarity of every caption, so they go with "
                f"--curation exact, not {self.curation}"
            )

    @property
    def augments_tags(self) -> bool:
        """Whether tag captions are augmented in this order."""
        return self.order == "shuffled" if self.aug_tag is None else self.aug_tag

    @property
    def budget(self) -> int:
        """The pairs that one outer step collects in each lane."""
        return self.curate_every * self.batch_size


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How sources are read; what is left out is found out, and said in the summary."""

    encoding: str = ""
    """Encoding of texts, one of Python's, such as cp1252; default: by the byte order mark, else
    UTF-8."""
    delimiter: str = "auto"
    """Delimiter of tables: a character, or tab; auto: that of the suffix, or the one that makes
    the header's columns."""
    quoting: Quoting = "auto"
    """Quotes in tables: as in RFC 4180 (csv); letters like any other (none); as in RFC 4180 unless
    a quote would swallow whole rows (auto)."""
    columns: str = ""
    """The columns of a table without a header line, separated by commas."""
    on_damaged: OnDamaged = "stop"
    """When a source is damaged: stop with exit code 4, or leave it out (skip)."""

    def __post_init__(self) -> None:
        if self.delimiter not in ("auto", "tab") and len(self.delimiter) != 1:
            raise ConfigError(
                f"--delimiter {self.delimiter!r}: it is one character, or tab, or auto"
            )
        if self.delimiter in ('"', "\n", "\r"):
            raise ConfigError("--delimiter: a quote or a line end cannot separate cells")
        names = self.column_names
        if len(set(names)) != len(names):
            raise ConfigError(f"--columns names a column twice: {', '.join(names)}")

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names in `columns`."""
        return tuple(name.strip() for name in self.columns.split(",") if name.strip())

    @property
    def changed(self) -> dict[str, object]:
        """The settings that are not the default, by name."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != each.default
        }


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where the work is done; the result is the same, byte for byte."""

    engine: Engine = "local"
    """Processes of this machine (local), or actors of a Ray cluster (ray; pip install "cit[ray]").
    On a cluster, the sources, the pool and --out are at the same path on every node."""
    ray_address: str = "local"
    """The cluster: local = a Ray of this machine for this command alone; auto = the cluster that
    this machine belongs to; HOST:PORT or ray://HOST:PORT."""
    workers: int = 0
    """Processes or actors; 0: one per processor, on a Ray cluster with GPUs one per GPU."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: it is a number of processes, or 0")
        if self.engine != "ray" and self.ray_address != "local":
            raise ConfigError("--ray-address is for --engine ray")


READ_AS_FOUND = ReadConfig()
# The default of a Python caller: no process starts, so no script needs a `__main__` guard.
IN_PROCESS = EngineConfig(workers=1)
