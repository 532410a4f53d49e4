"""The values that the page shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolFacts:
    """What one pool of several gave, over all outer steps; `weight` is its share of the scan."""

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
        """Share of the scanned captions that were kept."""
        return self.kept / self.scanned if self.scanned else 0.0


@dataclass(frozen=True)
class Example:
    """One pair as the page shows it; `uses` stands in for a similarity that nobody knows."""

    pair_key: str
    similarity: float
    uses: int | None
    caption: str
    image_uri: str
    source: str
    pool: str = ""  # in a run of several

    @property
    def title(self) -> str:
        """Its pair key, and in a run of several pools its pool."""
        return f"{self.pool}: {self.pair_key}" if self.pool else self.pair_key


@dataclass(frozen=True)
class ClassFacts:
    """One metadata entry: its distinct pairs, and examples.

    `metadata_id` is None for the pairs that no entry chose; their examples are `most_used`.
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
    """What is known of counts that `cit import-counts` made a run of.

    Attributes:
        file: The file they came from.
        num_uses: Their sum.
        uses: (times used, pairs).
        text_keys: (text key, pairs), the most frequent ones.
    """

    file: str
    num_uses: int
    uses: tuple[tuple[str, int], ...]
    text_keys: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class RunFacts:
    """All of the page but its pictures.

    Attributes:
        updates: Updates that the weights had seen at the last commit.
        notices: What a reader must know first: the run is empty, unfinished, or goes on.
        histogram: Count of each of the ledger's similarity bins.
        num_classes: Entries with at least one pair; `classes` has the largest of them.
        losses: (update, loss).
        rejects: (reason, pairs) of kept pairs whose image could not be opened; of imported
            counts, the entries that were set aside.
        pools: Only of a run of several.
        imported: Only of imported counts.
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
