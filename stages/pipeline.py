"""The chain in process: the reference for everything that serves it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tritrack.stages.contract import HITS, STAGES, TRACK_LABEL
from tritrack.stages.stage import Stage, load_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    StageHook = Callable[[str, dict[str, NDArray[Any]], float], None]


class Pipeline:
    """The five stages, one after the other.

    Parameters
    ----------
    stages
        The stages in the contract's order.
    """

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = tuple(stages)
        self.card = self.stages[0].card

    @classmethod
    def load(cls, engines: Path, *, threads: int) -> Pipeline:
        """Load the chain from a folder of engines (raises CardError)."""
        return cls([load_stage(spec.name, engines, threads=threads) for spec in STAGES])

    def find(self, hits: NDArray[np.float32], *, on_stage: StageHook | None = None) -> NDArray[np.int64]:
        """Find the tracks of one event.

        Parameters
        ----------
        hits
            float32 [n_hits, 3], x, y, z in mm.
        on_stage
            Called after each stage with its name, its outputs and its wall time in seconds.

        Returns
        -------
        ndarray
            int64 [n_hits], the track number of each hit or -1.

        Raises
        ------
        ContractError
            Where the hits break the contract or the event is over the card's limits.
        """
        tensors: dict[str, NDArray[Any]] = {HITS.name: hits}
        for stage in self.stages:
            start = time.perf_counter()
            outputs = stage(tensors)
            if on_stage is not None:
                on_stage(stage.spec.name, outputs, time.perf_counter() - start)
            tensors |= outputs
        labels: NDArray[np.int64] = tensors[TRACK_LABEL.name]
        return labels
