"""What a cost depends on: tower shapes, machines and workloads, as frozen dataclasses."""

from dataclasses import dataclass
from typing import Literal

Provenance = Literal["measured", "assumed"]
VIT_B16_TOKENS = 197


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A transformer, as far as its cost goes.

    Attributes:
        layers: Transformer layers.
        width: Hidden size.
        inner: Width of the feed-forward layer.
        parameters: All of them, embeddings too.
        head_flops: Floating-point operations of a head beside the layers, per sample.
    """

    layers: int
    width: int
    inner: int
    parameters: int
    head_flops: float = 0.0

    def forward_flops(self, tokens: float) -> float:
        """Floating-point operations of one forward pass over one sample of `tokens` tokens.

        Four square products and two of the feed-forward layer per token, and the two products of
        attention, which grow with the square of the tokens. A multiply-add counts as two.
        """
        products = 2 * tokens * (4 * self.width**2 + 2 * self.width * self.inner)
        attention = 4 * tokens**2 * self.width
        return self.layers * (products + attention) + self.head_flops


BERT_BASE = TowerShape(layers=12, width=768, inner=3_072, parameters=109_482_240)
MINILM = TowerShape(layers=6, width=384, inner=1_536, parameters=22_713_216)
_MOCO_HEAD = 768 * 4_096 + 4_096 * 4_096 + 4_096 * 256
VIT_B16_MOCO = TowerShape(
    layers=12,
    width=768,
    inner=3_072,
    parameters=85_798_656 + _MOCO_HEAD,
    head_flops=2 * _MOCO_HEAD,
)
# The head and both projections (512 from 768 and from 256) are what is trained besides the text.
RECIPE_TRAINED = BERT_BASE.parameters + _MOCO_HEAD + 512 * (768 + 256)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates of one accelerator (or of one CPU that stands in for it), its cores, disk and network.

    Attributes:
        name: For tables.
        provenance: Whether the accelerator's and the network's rates were measured or come from
            data sheets. Rates per core are always the measured ones.
        gemm_flops: FLOP/s of large matrix products at the precision that the stage runs in.
        float32_flops: The same in float32, in which evaluation runs.
        embed_utilisation: Share of `gemm_flops` that the text tower reaches when it embeds.
        vision_utilisation: The same of the vision tower's forward pass.
        train_utilisation: The same of the text tower forward and backward.
        search_utilisation: Share of `float32_flops` that the search over the metadata reaches.
        pass_tokens: Tokens of one forward pass when embedding.
        forward_overhead_seconds: What one forward pass of 12 layers costs however small it is:
            Python and kernel launches.
        device_bytes: Memory of the device.
        cores: Processor cores per accelerator.
        tokenize_captions: Captions/s that one core tokenises.
        read_captions: Captions/s that one core reads from the pool's Parquet, in scan order.
        select_captions: Captions/s that one core takes through the rules, near misses and rows.
        decode_images: Images/s that one core decodes.
        view_images: Images/s that one core decodes, crops and scales for training.
        shard_bytes: Bytes/s that one core writes into shards, hash and manifest included.
        checkpoint_bytes: Bytes/s of a checkpoint, hash included.
        ledger_bytes: Bytes/s of ledger rows on disk, compression included.
        fsync_seconds: One fsync of a small file.
        devices_per_node: Accelerators that share a node.
        node_network_bytes: Bytes/s of an all-reduce per accelerator within a node.
        network_bytes: Bytes/s of an all-reduce per accelerator between nodes.
        network_latency_seconds: One hop between ranks.
        storage_bytes: Bytes/s that one node reads from or writes to the shared file system.
        storage_total_bytes: Bytes/s of that file system, however many nodes ask.
    """

    name: str
    provenance: Provenance
    gemm_flops: float
    float32_flops: float
    embed_utilisation: float
    vision_utilisation: float
    train_utilisation: float
    search_utilisation: float
    pass_tokens: int
    forward_overhead_seconds: float
    device_bytes: float
    cores: int
    tokenize_captions: float
    read_captions: float
    select_captions: float
    decode_images: float
    view_images: float
    shard_bytes: float
    checkpoint_bytes: float
    ledger_bytes: float
    fsync_seconds: float
    devices_per_node: int
    node_network_bytes: float
    network_bytes: float
    network_latency_seconds: float
    storage_bytes: float
    storage_total_bytes: float


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One run: the pool, the rules, the towers and the options.

    Attributes:
        name: For tables.
        captions: Captions of one pass over the pool (one text an image).
        mean_tokens: Tokens of a caption.
        pass_ratio: Share of the scanned captions above the threshold.
        min_ratio: Share that a batch keeps at least.
        metadata_entries: Vectors that each caption is compared with.
        text: Text tower.
        vision: Vision tower; unused without training.
        vision_tokens: Its tokens.
        trained_parameters: What has a gradient.
        projection_dim: Dimensions that the loss compares in.
        lanes: Independent curation streams.
        batch_size: Pairs of one update and lane.
        curate_every: Updates between two outer steps.
        updates: Of the whole run; 0 = no training, one offline pass over the pool.
        max_passes: Passes over a lane's share that one outer step may make.
        collection: Whether a pair counts once per outer step.
        image_bytes: Mean size of an image file.
        caption_bytes: Bytes of a caption's row in the pool.
        selection_row_bytes: Bytes of a `selections` row on disk.
        used_row_bytes: Bytes of a `used` row on disk.
        pairs_per_shard: Pairs of one tar.
        num_workers: Processes that decode training images, per rank; 0 = the training process.
        cached_features: Image features made once per image instead of at each update.
        micro_batch: Pairs embedded at a time with gradient caching; 0 = the whole lane at once.
        local_loss: Each rank makes its own rows of the loss matrix alone.
        pipelined: In an offline pass an engine's actors, one per accelerator, score captions ahead
            of the rules; else one process does everything in turn.
        evaluated_images: Images of all evaluations while training, on one rank.
    """

    name: str
    captions: float
    mean_tokens: float
    pass_ratio: float
    min_ratio: float
    metadata_entries: int
    text: TowerShape = BERT_BASE
    vision: TowerShape = VIT_B16_MOCO
    vision_tokens: int = VIT_B16_TOKENS
    trained_parameters: int = RECIPE_TRAINED
    projection_dim: int = 512
    lanes: int = 16
    batch_size: int = 1_024
    curate_every: int = 100
    updates: int = 5_000
    max_passes: int = 1
    collection: Literal["unique", "multiset"] = "unique"
    image_bytes: float = 98_000
    caption_bytes: float = 150
    selection_row_bytes: float = 60
    used_row_bytes: float = 20
    pairs_per_shard: int = 512
    num_workers: int = 0
    cached_features: bool = False
    micro_batch: int = 0
    local_loss: bool = False
    pipelined: bool = False
    evaluated_images: float = 0
