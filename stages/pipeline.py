"""The chain in process: the reference for everything that serves it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tritrack.stages.card import read_card
from tritrack.stages.contract import EVENT_OFFSETS, HITS, STAGES, TRACK_LABEL
from tritrack.stages.engine import load_engine
from tritrack.stages.placement import to_host
from tritrack.stages.stage import make_stage, set_compiled_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.stages.card import ModelCard, WorkingPointName
    from tritrack.stages.engine import Engine

    StageHook = Callable[[str, dict[str, Any], float], None]


class Pipeline:
    """The five stages, one after the other, at one working point.

    Parameters
    ----------
    card
        Cuts and limits.
    engines
        The networks, by stage.
    working_point
        Whose cuts are taken; None for the card's default.
    device
        Torch's name of the device that the stages which can compute on; None for the host.

    Raises
    ------
    CardError
        Where the card has no such working point.
    """

    def __init__(
        self,
        *,
        card: ModelCard,
        engines: Mapping[str, Engine],
        working_point: WorkingPointName | None = None,
        device: str | None = None,
    ) -> None:
        cuts = card.point(working_point).cuts
        self.card = card
        self.working_point = working_point or card.default
        self.stages = tuple(
            make_stage(spec, card=card, cuts=cuts, engine=engines.get(spec.name), device=device)
            for spec in STAGES
        )
        self._engines = engines
        self._device = device

    @classmethod
    def load(
        cls,
        engines: Path,
        *,
        threads: int,
        working_point: WorkingPointName | None = None,
        device: str | None = None,
    ) -> Pipeline:
        """Load the chain from a folder of engines (raises CardError).

        The threads of the compiled loops are set for the calling thread: find events in the same one.
        """
        set_compiled_threads(threads)
        card = read_card(engines)
        card.point(working_point)  # a missing one shows before the engines are loaded
        loaded = {
            spec.name: load_engine(spec, engines, threads=threads, device=device)
            for spec in STAGES
            if spec.engine
        }
        return cls(card=card, engines=loaded, working_point=working_point, device=device)

    def at(self, working_point: WorkingPointName | None) -> Pipeline:
        """Return the chain at another working point of its card, with the same networks (raises CardError)."""
        return Pipeline(
            card=self.card, engines=self._engines, working_point=working_point, device=self._device
        )

    def find(
        self,
        hits: NDArray[np.float32],
        *,
        event_offsets: NDArray[np.int64] | None = None,
        on_stage: StageHook | None = None,
    ) -> NDArray[np.int64]:
        """Find the tracks of one event, or of each event of a pack.

        Parameters
        ----------
        hits
            float32 [n_hits, 3], x, y, z in mm.
        event_offsets
            int64 [n_events + 1]: event i has the hits from entry i up to entry i + 1. None for one event.
        on_stage
            Called after each stage with its name, its outputs and its wall time in seconds.

        Returns
        -------
        ndarray
            int64 [n_hits], the track number of each hit in its event or -1.

        Raises
        ------
        ContractError
            Where the hits break the contract or the event (or the pack) is over the card's limits.
        """
        tensors: dict[str, Any] = {HITS.name: hits}
        if event_offsets is not None:
            tensors[EVENT_OFFSETS.name] = event_offsets
        for stage in self.stages:
            start = time.perf_counter()
            outputs = stage(tensors)
            if on_stage is not None:
                on_stage(stage.spec.name, outputs, time.perf_counter() - start)
            tensors |= outputs
        return to_host(tensors[TRACK_LABEL.name])
