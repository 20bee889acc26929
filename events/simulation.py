"""Simulated events by seed: top pairs with pile-up on the Generic Detector.

Event I of seed S is the same whatever else is simulated, in any order and by any number of jobs: every
random number of an event comes from (seed, event).
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tritrack.events.checks import check_event
from tritrack.events.event import NOISE, Event, EventError, Measurements, Particles, Truth
from tritrack.events.parquet import event_file, read_metadata, write_event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tritrack.events.detector import Response
    from tritrack.events.modules import Modules

NOISE_SHARE = {17: 0.32, 13: 0.30, 8: 0.10, 12: 0.06, 14: 0.06, 18: 0.05, 7: 0.04, 9: 0.04, 16: 0.03}
"""Share of the noise hits by volume, about as in the TrackML challenge's events."""

SETTINGS_KEY = "tritrack_simulation"
"""Under this key an event's file holds the settings it was simulated with, as JSON."""

MIN_LISTED_PT = 0.1
"""Particles without hits are listed from this transverse momentum on, in GeV."""


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What to simulate.

    Attributes
    ----------
    seed
        Seed, 0 or more.
    pileup
        Mean number of soft collisions on top of the top pair (Poisson).
    noise
        Share of an event's final hits that are noise, from 0 to below 1.
    inefficiency
        Share of the particles' hits that are lost, from 0 to 1.
    beamspot_z
        Spread of the collisions along the beam (one standard deviation) in mm.

    Raises
    ------
    EventError
        On a value out of range.
    """

    seed: int
    pileup: float = 40.0
    noise: float = 0.0
    inefficiency: float = 0.0
    beamspot_z: float = 55.0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
            ("pileup", 0 <= self.pileup <= 2000, "from 0 to 2000"),
            ("noise", 0 <= self.noise < 1, "from 0 to below 1"),
            ("inefficiency", 0 <= self.inefficiency <= 1, "from 0 to 1"),
            ("beamspot_z", 0 <= self.beamspot_z <= 1000, "from 0 to 1000 mm"),
        ):
            if not good:
                raise EventError(f"simulation: {name} is {getattr(self, name)}, it should be {wanted}")


class Simulator:
    """Makes events one by one; the set-up takes some 10 seconds.

    Parameters
    ----------
    settings
        What to simulate.

    Raises
    ------
    ImportError
        Where the extra ``simulate`` is not installed.
    """

    def __init__(self, settings: SimulationSettings) -> None:
        check_installed()
        from tritrack.events.collisions import CollisionGenerator
        from tritrack.events.detector import DetectorSimulation

        self.settings = settings
        self._detector = DetectorSimulation(seed=settings.seed)
        self._collisions = CollisionGenerator(pileup=settings.pileup, beamspot_z=settings.beamspot_z)

    def event(self, event_id: int) -> Event:
        """Simulate one event.

        Parameters
        ----------
        event_id
            Number of the event, 0 or more.

        Returns
        -------
        Event
            Its hits are sorted by module and, on a module, by local position: the order tells nothing of the
            particles. Its particles are the charged ones that left a hit or have pT >= 0.1 GeV.
        """
        # One stream for the collisions and one for what happens to the hits: with and without noise, an
        # event has the same particles.
        rng, rng_hits = (np.random.default_rng([self.settings.seed, event_id, i]) for i in (0, 1))
        response = self._detector.run(event_id, self._collisions.event(rng))
        event = _assemble(event_id, response, self._detector.modules, self.settings, rng_hits)
        return check_event(event, where=f"simulation with seed {self.settings.seed}")


def read_settings(path: Path) -> SimulationSettings | None:
    """Read what a Parquet event was simulated with; None for one that was not, or long ago.

    Raises
    ------
    EventError
        Where the file cannot be read, or its settings are not this version's.
    """
    settings = read_metadata(path).get(SETTINGS_KEY)
    if settings is None:
        return None
    try:
        return msgspec.json.decode(settings, type=SimulationSettings)
    except msgspec.MsgspecError as error:
        raise EventError(f"{path}: its simulation settings cannot be read: {error}") from None


def check_installed() -> None:
    """Check that the extra ``simulate`` is there.

    Raises
    ------
    ImportError
        Names the extra.
    """
    try:
        import acts  # noqa: F401
        import pythia8mc  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"simulation needs the extra 'simulate' ({error.name} is not installed): "
            "in tritrack's folder, pip install '.[simulate]'",
            name=error.name,
        ) from None


def simulate(
    settings: SimulationSettings, folder: Path, *, n_events: int, first: int = 0, jobs: int = 1
) -> Iterator[Path]:
    """Simulate events ``first`` to ``first + n_events - 1`` into a folder.

    Parameters
    ----------
    settings
        What to simulate.
    folder
        Where the files go; made if missing. Files of the same name are replaced.
    n_events
        How many events.
    first
        Number of the first.
    jobs
        Processes; each takes some 10 seconds to set up and about 0.4 GB of memory. With more than one the
        calling script must be importable (``if __name__ == "__main__"``).

    Yields
    ------
    Path
        Each finished file, in order.

    Raises
    ------
    EventError
        On a number out of range, a folder that is a file, or where a process dies.
    ImportError
        Where the extra ``simulate`` is not installed.
    """
    for name, value, least in (("n_events", n_events, 0), ("first", first, 0), ("jobs", jobs, 1)):
        if value < least:
            raise EventError(f"simulation: {name} is {value}, it should be at least {least}")
    check_installed()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise EventError(f"{folder}: a file of this name is in the way of the folder") from None
    events = range(first, first + n_events)
    if jobs == 1 or n_events <= 1:
        simulator = Simulator(settings)
        for event_id in events:
            yield _write(simulator, event_id, folder)
        return
    # Processes, for events of one process share its random numbers; fresh ones, for neither library forks.
    with ProcessPoolExecutor(
        max_workers=min(jobs, n_events),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_job,
        initargs=(settings, folder),
    ) as pool:
        try:
            yield from pool.map(_run_job, events)
        except BrokenProcessPool:
            raise EventError(f"{folder}: a job died (out of memory?); try fewer jobs") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_job: tuple[Simulator, Path] | None = None
"""Of a job's process: set once when it starts, for the set-up is slow."""


def _start_job(settings: SimulationSettings, folder: Path) -> None:
    global _job
    _job = Simulator(settings), folder


def _run_job(event_id: int) -> Path:
    assert _job is not None
    return _write(_job[0], event_id, _job[1])


def _write(simulator: Simulator, event_id: int, folder: Path) -> Path:
    path = folder / event_file(event_id)
    origin = {SETTINGS_KEY: msgspec.json.encode(simulator.settings).decode()}
    write_event(simulator.event(event_id), path, metadata=origin)
    return path


def _assemble(
    event_id: int,
    response: Response,
    modules: Modules,
    settings: SimulationSettings,
    rng: np.random.Generator,
) -> Event:
    kept = rng.random(len(response.module)) >= settings.inefficiency
    n_kept = int(kept.sum())
    n_noise = round(settings.noise / (1 - settings.noise) * n_kept)
    noise_module, noise_local = _noise(modules, n_noise, rng)

    particle_id = _particle_ids(response.barcode)
    module = np.concatenate([response.module[kept], noise_module])
    local = np.concatenate([response.local[kept], noise_local])
    of_hit = np.concatenate([particle_id[response.particle[kept]], np.full(n_noise, NOISE)])
    order = np.concatenate([response.time[kept], np.zeros(n_noise)])
    row = np.lexsort((local[:, 1], local[:, 0], module))
    module, local, of_hit, order = module[row], local[row], of_hit[row], order[row]

    pt = np.hypot(response.momentum[:, 0], response.momentum[:, 1])
    listed = (response.charge != 0) & (np.isin(particle_id, of_hit) | (pt >= MIN_LISTED_PT))
    n_hits = len(module)
    return Event(
        event_id=event_id,
        hits=modules.to_global(module, local).astype(np.float32),
        hit_id=np.arange(n_hits, dtype=np.int64),
        modules=modules.ids[module],
        truth=Truth(
            particle_id=of_hit.astype(np.int64),
            order=order.astype(np.float32),
            particles=Particles(
                particle_id=particle_id[listed],
                charge=response.charge[listed].astype(np.float32),
                vertex=response.vertex[listed].astype(np.float32),
                momentum=response.momentum[listed].astype(np.float32),
                primary=(response.barcode[listed, 1] == 0) & (response.barcode[listed, 3] == 0),
            ),
        ),
        measurements=Measurements(
            local=local.astype(np.float32),
            variance=(modules.pitch[module] ** 2 / 12).astype(np.float32),
        ),
    )


def _noise(
    modules: Modules, n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Noise hits: the volume by `NOISE_SHARE`, any module of it, any cell of that; modules [n], local [n, 2]."""
    volumes, per_volume = np.unique(modules.ids[:, 0], return_counts=True)
    share = np.array([NOISE_SHARE[volume] for volume in volumes.tolist()]) / per_volume
    weight = share[np.searchsorted(volumes, modules.ids[:, 0])]
    module = rng.choice(len(weight), size=n, p=weight / weight.sum())
    low, high, half_1 = modules.half_length[module].T
    where = rng.uniform(-1, 1, size=(n, 2))
    half_0 = low + (high - low) * (where[:, 1] + 1) / 2  # a trapezoid's width changes along axis 1
    local = where * np.stack([half_0, half_1], axis=1)
    pitch = modules.pitch[module]
    return module, (np.floor(local / pitch) + 0.5) * pitch


def _particle_ids(barcode: NDArray[np.int64]) -> NDArray[np.int64]:
    """One positive number a particle: the barcode's five fields side by side, 11, 1, 24, 8 and 19 bits."""
    bits = (11, 1, 24, 8, 19)
    packed = np.zeros(len(barcode), dtype=np.int64)
    for column, width in enumerate(bits):
        if (barcode[:, column] >> width).any():
            raise EventError(f"simulation: field {column} of a particle's barcode exceeds {width} bits")
        packed = (packed << width) | barcode[:, column]
    return packed
