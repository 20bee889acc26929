"""What `tritrack.bench.engines` writes: a row for each engine, a row for each time, and the ratios of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from tritrack.bench.quantiles import quantile
from tritrack.bench.result import Header  # noqa: TC001 (read when a result is decoded)
from tritrack.stages.card import Precision  # noqa: TC001 (read when a result is decoded)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Device = Literal["cpu", "gpu"]

CHAIN = "chain"
"""In the place of a stage: the whole way from hits to labels."""
REFERENCE, COMPILED = "torch", "torch.compile"
"""The engine that the others are set against, and the same one compiled."""
PLAIN, OURS = "onnx, plain export", "onnx"
"""The networks exported as such ones are commonly written, and as they are served."""


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """An engine that was measured, or what kept it from that.

    Attributes
    ----------
    engine
        Its name.
    precision, device
        What its inner layers compute in, and where.
    missing
        Why it is not here; None for one that is.
    load_seconds, warm_up_seconds
        By stage, wall time to load or export the network, and of the gates' cases, its first calls of all: a compiler
        compiles in them.
    gate_deviation
        By stage, the largest deviation on the gates' cases.
    efficiency_change, fake_rate_change
        By set of events, from torch's; None where one of the two is a share of nothing.
    """

    engine: str
    precision: Precision = "fp32"
    device: Device = "cpu"
    missing: str | None = None
    load_seconds: dict[str, float] = field(default_factory=dict)
    warm_up_seconds: dict[str, float] = field(default_factory=dict)
    gate_deviation: dict[str, float] = field(default_factory=dict)
    efficiency_change: dict[str, float | None] = field(default_factory=dict)
    fake_rate_change: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Time:
    """One network, or the chain, in one engine on one event.

    Attributes
    ----------
    events, event_id, n_hits
        Name of the set, and the event.
    engine, stage
        The engine, and the stage or "chain" for all five.
    n_rows
        Rows that the network answers in the torch chain: hits, or pairs. For the chain, hits.
    first_seconds
        Wall time of the first call with the event's sizes, which ``seconds`` leaves out.
    seconds, cpu_seconds
        Wall time, and processor time of all threads, in each round; a network's alone, the pieces of the filter's
        pairs together. Round i of one engine is round i of all.
    deviation
        Largest difference from torch on the same inputs: of a score, or of a coordinate relative to the largest
        one. None for the chain.
    equal_labels
        Share of the hits with the label that torch gives; a track more shifts the numbers of those after it. None
        for a network.
    other_tracks
        Share of the tracks that are not the same sets of hits as in torch. None for a network.
    """

    events: str
    event_id: int
    n_hits: int
    engine: str
    stage: str
    n_rows: int
    first_seconds: float
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    deviation: float | None = None
    equal_labels: float | None = None
    other_tracks: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `tritrack.bench.engines` writes.

    Attributes
    ----------
    header
        What it was made with.
    engines
        The engines, the reference first.
    times
        The times, set by set, event by event, engine by engine.
    """

    header: Header
    engines: tuple[EngineRow, ...]
    times: tuple[Time, ...]

    def places(self) -> list[tuple[str, str]]:
        """Return each set of events and stage that there are times of, in order."""
        return list(dict.fromkeys((time.events, time.stage) for time in self.times))

    def times_of(self, events: str, stage: str, engine: str) -> list[Time]:
        """Return the times of one engine at one place, a row for each event."""
        return [row for row in self.times if (row.events, row.stage, row.engine) == (events, stage, engine)]

    def gains(self, events: str, stage: str, engine: str, *, over: str = REFERENCE) -> NDArray[np.float64]:
        """Return, for each round on each event, the time of another engine by this one's: above 1 is a gain.

        Empty where one of the two was not measured. Processor time, which other programs hardly lengthen; wall time where one of the two waits for a GPU.
        """
        on_gpu = {row.engine for row in self.engines if row.device == "gpu"} & {engine, over}
        theirs, mine = (
            np.array(
                [
                    seconds
                    for row in self.times_of(events, stage, name)
                    for seconds in (row.seconds if on_gpu else row.cpu_seconds)
                ]
            )
            for name in (over, engine)
        )
        # One of the two may not be here.
        gains: NDArray[np.float64] = theirs / mine if len(theirs) == len(mine) else np.empty(0)
        return gains

    def ratios(self) -> dict[str, float]:
        """Return the median gain over torch by set/stage/engine, and ours over the plain export."""
        wanted = {
            f"{events}/{stage}/{row.engine}": self.gains(events, stage, row.engine)
            for events, stage in self.places()
            for row in self.engines
            if row.missing is None and row.engine != REFERENCE
        } | {
            f"{events}/{stage}/{OURS} over {PLAIN}": self.gains(events, stage, OURS, over=PLAIN)
            for events, stage in self.places()
        }
        medians = {name: quantile(gains, 0.5) for name, gains in wanted.items()}
        return {name: median for name, median in medians.items() if median is not None}
