"""The peer: seeding, combinatorial Kalman filter and ambiguity solving of ACTS, on an event's own hits.

The algorithms are those of ACTS (Ai et al., arXiv:2106.13593), driven one by one in the calling thread, so all
of it is single-threaded. They know the detector and its field exactly, as they do in an experiment. Needs the
extra ``simulate``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import acts
import acts.examples
import numpy as np

from tritrack.events.detector import FIELD, bind_handle
from tritrack.events.modules import UNIT, read_modules

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.events.event import Event

_LEVEL = acts.logging.FATAL
"""As errors ACTS reports single tracks that cannot be fitted; they are no tracks then."""


class CkfError(ValueError):
    """An event that the Kalman filter cannot run on; the message names the event."""


@dataclass(frozen=True, kw_only=True)
class CkfSettings:
    """The tuned working point; lengths in mm, momenta in GeV.

    Always on are the two-way search, seed deduplication, and staying on the seed's hits. Radii and reach of the
    seeds were chosen on events of pile-up 40 and 200 with noise: seeds from 60 mm on find 5 points fewer of
    the targets (those at 3 < abs(eta) < 4), ones up to 120 mm 0.4 points fewer of the comparison's, and space
    points in the short strips too find no more.

    Attributes
    ----------
    seed_volumes
        Volumes whose hits become space points for the seeds (the pixels).
    seed_min_pt, seed_impact_max, seed_max_eta
        Seeds that bend more, pass the beam further away, or lie further forward are dropped.
    seed_delta_r
        Least and largest radial distance of neighbouring hits of a seed.
    seed_middle_r
        Radii between which a seed's middle hit lies.
    collision_region
        Where along the beam seeds may come from.
    max_seeds_per_middle
        Cap on seeds that share a middle hit (``maxSeedsPerSpM`` of ACTS).
    chi2_measurement, chi2_outlier
        A hit up to the first belongs to the track; one up to the second is an outlier of it.
    branches
        Hits of one surface that a track is followed through.
    min_measurements, max_holes, max_outliers
        Of a track.
    max_shared_hits
        Tracks with more hits of better tracks are dropped.
    """

    seed_volumes: tuple[int, ...] = (7, 8, 9)
    seed_min_pt: float = 0.9
    seed_impact_max: float = 2.0
    seed_max_eta: float = 4.0
    seed_delta_r: tuple[float, float] = (1.0, 80.0)
    seed_middle_r: tuple[float, float] = (40.0, 150.0)
    collision_region: tuple[float, float] = (-250.0, 250.0)
    max_seeds_per_middle: int = 2
    chi2_measurement: float = 15.0
    chi2_outlier: float = 25.0
    branches: int = 1
    min_measurements: int = 7
    max_holes: int = 2
    max_outliers: int = 2
    max_shared_hits: int = 3


WORKING_POINTS = {
    "wide": CkfSettings(),
    "central": CkfSettings(seed_max_eta=3.0, seed_middle_r=(60.0, 150.0)),
}
"""By name: seeds up to abs(eta) = 4, where targets lie; up to 3, with fewer unmatched tracks in less time."""


@dataclass(frozen=True, kw_only=True)
class CkfTracks:
    """What the Kalman filter found in one event.

    Attributes
    ----------
    pairs
        int64 [2, n_pairs], track numbers from 0 above hit indices; tracks may share hits.
    pt, eta
        float64 [n_tracks] each, fitted transverse momentum in GeV and pseudorapidity.
    seconds
        Wall time of each algorithm by name; the sum is the time of the finder.
    cpu_seconds
        Processor time of the algorithms.
    conversion_seconds
        Wall time of handing over the hits and taking back the tracks, in Python.
    """

    pairs: NDArray[np.int64]
    pt: NDArray[np.float64]
    eta: NDArray[np.float64]
    seconds: dict[str, float]
    cpu_seconds: float
    conversion_seconds: float


class _Store(acts.examples.IAlgorithm):  # type: ignore[misc]
    """Puts measurements on the whiteboard and takes the tracks off it."""

    def __init__(self) -> None:
        super().__init__("Store", _LEVEL)
        ex = acts.examples
        self.measurements = bind_handle(self, ex.WriteDataHandle, ex.MeasurementSubset, "measurements")
        self.tracks = bind_handle(self, ex.ReadDataHandle, ex.ConstTrackContainer, "solved")


class CkfFinder:
    """Finds tracks in events on the modules of the Generic Detector; the set-up takes some seconds.

    Parameters
    ----------
    settings
        The working point.
    """

    def __init__(self, settings: CkfSettings | None = None) -> None:
        self.settings = CkfSettings() if settings is None else settings
        ex = acts.examples
        self._detector = ex.GenericDetector(ex.GenericDetector.Config(logLevel=_LEVEL))
        geometry = self._detector.trackingGeometry()
        field = acts.ConstantBField(acts.Vector3(0, 0, FIELD * UNIT.T))
        self._modules = read_modules(geometry)
        self._identifiers = [acts.GeometryIdentifier(value) for value in self._modules.geometry_id.tolist()]
        self._store = _Store()
        self._algorithms = {
            "space points": _space_points(geometry, self.settings),
            "seeds": _seeding(self.settings),
            "seed parameters": _parameters(geometry, field),
            "Kalman filter": _track_finding(geometry, field, self.settings),
            "ambiguities": _ambiguity_solving(self.settings),
        }

    def find(self, event: Event) -> CkfTracks:
        """Find the tracks of one event.

        Raises
        ------
        CkfError
            Where the event has no local measurements, or a hit names a module that the detector lacks.
        """
        start = time.perf_counter()
        board = acts.examples.WhiteBoard(_LEVEL)
        measurements = self._measurements(event)  # the whiteboard's subset points into it
        subset = acts.examples.MeasurementSubset(measurements, np.arange(event.n_hits).tolist())
        self._store.measurements(acts.examples.AlgorithmContext(0, event.event_id, board, 0), subset)
        conversion = time.perf_counter() - start
        seconds = {}
        cpu_start = time.process_time()
        for number, (name, algorithm) in enumerate(self._algorithms.items(), start=1):
            context = acts.examples.AlgorithmContext(number, event.event_id, board, 0)
            start = time.perf_counter()
            code = algorithm.internalExecute(context)
            seconds[name] = time.perf_counter() - start
            if code != acts.examples.ProcessCode.SUCCESS:
                raise CkfError(f"event {event.event_id}: the step {name!r} of ACTS failed")
        cpu = time.process_time() - cpu_start
        start = time.perf_counter()
        pairs, pt, eta = _read_tracks(self._store.tracks(board))
        conversion += time.perf_counter() - start
        return CkfTracks(
            pairs=pairs, pt=pt, eta=eta, seconds=seconds, cpu_seconds=cpu, conversion_seconds=conversion
        )

    def _measurements(self, event: Event) -> Any:
        """Measurements of ACTS in the order of the hits: the index of each is the hit's."""
        if event.measurements is None:
            raise CkfError(f"event {event.event_id}: has no local measurements, a Kalman filter needs them")
        container = acts.examples.MeasurementContainer()
        container.reserve(event.n_hits)
        local = (event.measurements.local.astype(np.float64) * UNIT.mm).tolist()
        variance = (event.measurements.variance.astype(np.float64) * UNIT.mm**2).tolist()
        for row, place, spread in zip(self._rows(event).tolist(), local, variance, strict=True):
            # What the bindings call a covariance are the variances.
            container.emplaceMeasurement(self._identifiers[row], (0, 1), place, spread)
        return container

    def _rows(self, event: Event) -> NDArray[np.int64]:
        """Row of `Modules` of each hit."""
        known = _key(self._modules.ids)
        order = np.argsort(known)
        wanted = _key(event.modules)
        place = np.minimum(np.searchsorted(known[order], wanted), known.size - 1)
        lost = np.flatnonzero(known[order][place] != wanted)
        if lost.size:
            names = event.modules[lost[0]].tolist()
            raise CkfError(
                f"event {event.event_id}: hit {lost[0]} lies on volume, layer, module {names}, "
                "which the Generic Detector lacks"
            )
        rows: NDArray[np.int64] = order[place]
        return rows


def _key(ids: NDArray[np.int32]) -> NDArray[np.int64]:
    volume, layer, module = ids.astype(np.int64).T
    key: NDArray[np.int64] = (volume << 40) + (layer << 24) + module
    return key


def _read_tracks(tracks: Any) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return (track, hit) pairs, pT and eta; outliers and holes are no hits of a track."""
    fitted, pairs = [], []
    for number, track in enumerate(tracks):
        fitted.append((track.transverseMomentum / UNIT.GeV, track.theta))
        for state in track.trackStatesReversed:
            if state.typeFlags.isMeasurement:
                link = acts.examples.IndexSourceLink.fromSourceLink(state.uncalibratedSourceLink)
                pairs.append((number, link.index()))
    pt, theta = np.array(fitted, dtype=np.float64).reshape(-1, 2).T
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T, pt, -np.log(np.tan(theta / 2))


def _space_points(geometry: Any, settings: CkfSettings) -> Any:
    return acts.examples.SpacePointMaker(
        level=_LEVEL,
        inputMeasurements="measurements",
        outputSpacePoints="space_points",
        trackingGeometry=geometry,
        geometrySelection=[acts.GeometryIdentifier(volume=volume) for volume in settings.seed_volumes],
    )


def _seeding(settings: CkfSettings) -> Any:
    low, high = (distance * UNIT.mm for distance in settings.seed_delta_r)
    return acts.examples.GridTripletSeedingAlgorithm(
        level=_LEVEL,
        inputSpacePoints="space_points",
        outputSeeds="seeds",
        bFieldInZ=FIELD * UNIT.T,
        minPt=settings.seed_min_pt * UNIT.GeV,
        impactMax=settings.seed_impact_max * UNIT.mm,
        cotThetaMax=float(np.sinh(settings.seed_max_eta)),
        deltaRMin=low,
        deltaRMax=high,
        deltaRMinTop=low,
        deltaRMaxTop=high,
        deltaRMinBottom=low,
        deltaRMaxBottom=high,
        rMax=200 * UNIT.mm,
        rMinMiddle=settings.seed_middle_r[0] * UNIT.mm,
        rMaxMiddle=settings.seed_middle_r[1] * UNIT.mm,
        zMin=-2000 * UNIT.mm,
        zMax=2000 * UNIT.mm,
        collisionRegionMin=settings.collision_region[0] * UNIT.mm,
        collisionRegionMax=settings.collision_region[1] * UNIT.mm,
        maxSeedsPerSpM=settings.max_seeds_per_middle,
    )


def _parameters(geometry: Any, field: Any) -> Any:
    return acts.examples.TrackParamsEstimationAlgorithm(
        level=_LEVEL,
        inputSeeds="seeds",
        outputTrackParameters="parameters",
        outputSeeds="estimated_seeds",
        trackingGeometry=geometry,
        magneticField=field,
    )


def _track_finding(geometry: Any, field: Any, settings: CkfSettings) -> Any:
    finding = acts.examples.TrackFindingAlgorithm
    cuts = acts.MeasurementSelectorCuts()
    cuts.chi2CutOffMeasurement = [settings.chi2_measurement]
    cuts.chi2CutOffOutlier = [settings.chi2_outlier]
    cuts.numMeasurementsCutOff = [settings.branches]
    return finding(
        level=_LEVEL,
        inputMeasurements="measurements",
        inputInitialTrackParameters="parameters",
        inputSeeds="estimated_seeds",
        outputTracks="tracks",
        trackingGeometry=geometry,
        magneticField=field,
        findTracks=finding.makeTrackFinderFunction(geometry, field, _LEVEL),
        measurementSelectorCfg=acts.MeasurementSelector.Config([(acts.GeometryIdentifier(), cuts)]),
        trackSelectorCfg=acts.TrackSelector.Config(
            minMeasurements=settings.min_measurements,
            maxHoles=settings.max_holes,
            maxOutliers=settings.max_outliers,
        ),
        twoWay=True,
        seedDeduplication=True,
        stayOnSeed=True,
    )


def _ambiguity_solving(settings: CkfSettings) -> Any:
    return acts.examples.GreedyAmbiguityResolutionAlgorithm(
        level=_LEVEL,
        inputTracks="tracks",
        outputTracks="solved",
        maximumSharedHits=settings.max_shared_hits,
        nMeasurementsMin=settings.min_measurements,
        maximumIterations=1_000_000,
    )
