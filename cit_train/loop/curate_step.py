"""The selection of an outer step on this rank, and its agreement with the other ranks."""

from typing import Any

from cit_curate.curation.curator import LaneSelection
from cit_curate.curation.lane_scan import SMALLEST_WINDOW, OuterStep
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import LaneScores
from cit_curate.curation.threshold import SAMPLE_CAPTIONS
from cit_curate.errors import NotFiniteError
from cit_curate.text_encoder.embedder import Embedder
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.session import Session
from cit_train.loop.watcher import Watcher
from cit_train.ranks.stopping import StoppedError


def curate_lanes(
    session: Session,
    state: TrainState,
    encoder: Embedder,
    scores: LaneScores | None,
    watcher: Watcher,
) -> list[LaneSelection]:
    """Select the next pairs of each lane of this rank by caption, and wait for the other ranks.

    Args:
        session: The run.
        state: Its state at the start of the outer step.
        encoder: The text encoder that the outer step selects with.
        scores: The scores of captions under this encoder; None without curation.
        watcher: Receives the progress of the scans.

    Raises:
        StoppedError: A signal reached some rank; raised on all ranks.
        ShortfallError: See `LaneScan.take`.
        NotFiniteError: Too many captions of some rank have no usable vector; raised on all ranks.
    """
    world, config, curator = session.world, session.config, session.curator
    position: dict[str, Any] = {"outer_step": state.outer_step, "update": state.update}

    def progress(lane: int, totals: ScanTotals) -> None:
        watcher.curating(state.outer_step, lane, totals)
        kept = f"curating lane {lane}: {totals.kept:,} of {totals.scanned:,} captions kept"
        world.beat(kept, **position)
        if session.stop.requested is not None:
            raise StoppedError("asked to stop")

    world.beat("curating", **position)
    is_start = state.update == 0 and config.curate.skip_until < config.train.max_updates
    if scores is not None and is_start and world.is_first:
        # As many as the scan embeds anyway: the sample delays nothing.
        num_captions = min(SAMPLE_CAPTIONS, max(config.budget, SMALLEST_WINDOW))
        watcher.sampled(curator.sample(encoder, num_captions=num_captions), config)
    selections: list[LaneSelection] = []
    broken: NotFiniteError | None = None
    try:
        selections = curator.run(
            OuterStep(state.outer_step, state.update, encoder.fingerprint),
            state.cursors,
            scores,
            num_pairs=config.budget,  # also in a shorter last outer step, as in the paper
            lanes=world.lanes(config.curate.lanes),
            on_progress=progress,
        )
    except StoppedError:
        pass
    except NotFiniteError as error:
        broken = error
    world.beat("waiting for the others", **position)
    stops = None if selections or broken else session.stop.requested
    reports = world.agree("curated", [stops, broken and str(broken)])
    if broken := broken or _broken_elsewhere(reports):
        raise broken
    signals = [signal for signal, _ in reports]
    if any(signals):
        session.stop.take_over(signals)
        raise StoppedError("asked to stop")
    return selections


def _broken_elsewhere(reports: list[list[str | None]]) -> NotFiniteError | None:
    for rank, (_, message) in enumerate(reports):
        if message is not None:
            return NotFiniteError(f"rank {rank}: {message}")
    return None
