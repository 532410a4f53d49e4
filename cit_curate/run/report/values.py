"""The values that the page shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolFacts:
    """One pool of a mixture over all outer steps; `weight` is its share of the scan."""

    name: str
    weight: float
    scanned: int
    kept: int
    selected: int


@dataclass(frozen=True)
class Step:
    """One outer step over all its lanes."""

    outer_step: int
    update: int
    scanned: int
    kept: int
    selected: int
    threshold: float  # NaN where no rule applied
    best_similarity: float  # NaN where nothing was scored

    @property
    def ratio(self) -> float:
        """The share of the scanned captions that were kept."""
        return self.kept / self.scanned if self.scanned else 0.0


@dataclass(frozen=True)
class Example:
    """One pair of the page; `uses` is shown where the similarity is unknown."""

    pair_key: str
    similarity: float
    uses: int | None
    caption: str
    image_uri: str
    source: str
    pool: str = ""  # in a run of several

    @property
    def title(self) -> str:
        """The pair key, after the pool in a run of several pools."""
        return f"{self.pool}: {self.pair_key}" if self.pool else self.pair_key


@dataclass(frozen=True)
class ClassFacts:
    """One metadata entry: the number of its distinct pairs, and examples.

    `metadata_id` is None for the pairs without an entry; their examples are `most_used`.
    """

    metadata_id: int | None
    name: str
    num_pairs: int
    most_used: tuple[Example, ...] = ()
    most_similar: tuple[Example, ...] = ()
    borderline: tuple[Example, ...] = ()
    near_misses: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Zero-shot accuracy at one update, in percent."""

    update: int
    accuracy: float
    mean_per_class: float


@dataclass(frozen=True)
class ImportedFacts:
    """The facts of a run that `cit import-counts` made.

    Attributes:
        file: The file of the counts.
        num_uses: The sum of the counts.
        uses: The pairs by times used: (times used, pairs).
        text_keys: The pairs of the most frequent text keys: (text key, pairs).
    """

    file: str
    num_uses: int
    uses: tuple[tuple[str, int], ...]
    text_keys: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class RunFacts:
    """All facts of the page; only the pictures come from elsewhere.

    Attributes:
        name: The name of the run folder.
        updates: The updates that the weights had seen at the last commit.
        notices: The notices on top: the run is empty, not finished, or imported.
        config: The rows of the configuration.
        environment: The rows of the environment.
        steps: The committed outer steps.
        num_distinct: The number of distinct pairs.
        histogram: The count of each of the ledger's similarity bins.
        num_classes: The number of entries with a pair; `classes` has the largest of them.
        classes: The largest entries, with examples.
        evaluations: The zero-shot evaluations.
        losses: The points (update, loss).
        rejects: The rejected pairs, or entries of imported counts: (reason, number).
        pools: The pools of a mixture; empty in a run of one pool.
        imported: The facts of imported counts; None in any other run.
        class_list: The lines about the classes that were curated for; empty without curation.
    """

    name: str
    updates: int
    notices: tuple[str, ...]
    config: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    num_distinct: int
    histogram: tuple[int, ...]
    num_classes: int
    classes: tuple[ClassFacts, ...]
    evaluations: tuple[Evaluation, ...]
    losses: tuple[tuple[float, float], ...]
    rejects: tuple[tuple[str, int], ...]
    pools: tuple[PoolFacts, ...] = ()
    imported: ImportedFacts | None = None
    class_list: tuple[str, ...] = ()
