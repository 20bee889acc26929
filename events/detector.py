"""The detector's answer to particles: ACTS Fatras on the Generic Detector, with geometric digitisation.

ACTS: Ai et al., arXiv:2106.13593. The Generic Detector is the one of the TrackML challenge
(arXiv:1904.06778); the field is 2 T along z everywhere. Needs the extra ``simulate``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import acts
import acts.examples
import acts.examples.json
import numpy as np

from tritrack.events.modules import UNIT, Modules, largest, read_modules

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritrack.events.collisions import Generated

MIN_MOMENTUM = 0.1
"""Particles below this momentum, in GeV, are not followed (any more)."""
FIELD = 2.0
"""Solenoid field along z, in T."""

_LEVEL = acts.logging.ERROR


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the detector measured, one row a hit, and the particles behind it.

    Attributes
    ----------
    module
        int64 [n_hits], row of ``Modules``.
    local
        float64 [n_hits, 2], mm.
    particle
        int64 [n_hits], row of the particle arrays.
    time
        float64 [n_hits], ns.
    barcode
        int64 [n_particles, 5]: collision (from 1), 1 for products of a decay in flight, number in the
        collision, generation (above 0: made in the detector), number in the generation.
    charge, vertex, momentum
        float64 [n_particles], [n_particles, 3], [n_particles, 3] at production, in e, mm, GeV.
    """

    module: NDArray[np.int64]
    local: NDArray[np.float64]
    particle: NDArray[np.int64]
    time: NDArray[np.float64]
    barcode: NDArray[np.int64]
    charge: NDArray[np.float64]
    vertex: NDArray[np.float64]
    momentum: NDArray[np.float64]


class _Store(acts.examples.IAlgorithm):  # type: ignore[misc]
    """Puts particles on the whiteboard and takes the results off it.

    A data handle belongs to an algorithm for life, so all of them are bound here, once.
    """

    def __init__(self) -> None:
        super().__init__("Store", _LEVEL)
        ex = acts.examples
        self.generated = bind_handle(self, ex.WriteDataHandle, ex.SimParticleContainer, "generated")
        self.particles = bind_handle(self, ex.ReadDataHandle, ex.SimParticleContainer, "particles")
        self.sim_hits = bind_handle(self, ex.ReadDataHandle, ex.SimHitContainer, "simhits")
        self.measurements = bind_handle(self, ex.ReadDataHandle, ex.MeasurementContainer, "measurements")
        self.sources = bind_handle(self, ex.ReadDataHandle, ex.MeasurementSimHitsMap, "measurement_simhits")


def bind_handle(algorithm: Any, handle: Any, container: Any, key: str) -> Any:
    """Bind a data handle (its class, its container's class) to an algorithm and a whiteboard's key."""
    bound = handle(algorithm, container, key)
    bound.initialize(key)
    return bound


class DetectorSimulation:
    """Fatras and digitisation, ready to take events in any order.

    Parameters
    ----------
    seed
        Seed; each event's random numbers come from it and the event's number.
    """

    def __init__(self, *, seed: int) -> None:
        ex = acts.examples
        self._detector = ex.GenericDetector(ex.GenericDetector.Config(logLevel=_LEVEL))
        geometry = self._detector.trackingGeometry()
        self.modules = read_modules(geometry)
        random = ex.RandomNumbers(seed=seed)
        self._store = _Store()
        self._fatras = ex.FatrasSimulation(
            # As errors it reports the few particles in a million that run out of steps; they keep no hits.
            level=acts.logging.FATAL,
            inputParticles="generated",
            outputParticles="particles",
            outputSimHits="simhits",
            randomNumbers=random,
            trackingGeometry=geometry,
            magneticField=acts.ConstantBField(acts.Vector3(0, 0, FIELD * UNIT.T)),
            generateHitsOnSensitive=True,
            emScattering=True,
            emEnergyLossIonisation=True,
            emEnergyLossRadiation=True,
            emPhotonConversion=True,
            pMin=MIN_MOMENTUM * UNIT.GeV,
        )
        self._digitisation = _digitisation(geometry, random, self.modules)

    def run(self, event: int, generated: Generated) -> Response:
        """Simulate one event; the result depends on the seed, ``event`` and ``generated`` alone."""
        board = acts.examples.WhiteBoard(_LEVEL)

        # The algorithms run one by one on a whiteboard of our own: a Sequencer would want all events at
        # once. The number of the algorithm goes into its random numbers.
        def context(algorithm: int) -> Any:
            return acts.examples.AlgorithmContext(algorithm, event, board, 0)

        self._store.generated(context(0), _particle_container(generated))
        for number, algorithm in enumerate((self._fatras, self._digitisation), start=1):
            if algorithm.internalExecute(context(number)) != acts.examples.ProcessCode.SUCCESS:
                raise RuntimeError(f"event {event}: {algorithm.name()} failed")
        return self._read(board)

    def _read(self, board: Any) -> Response:
        particles = list(self._store.particles(board))
        barcode = np.array([_fields(p.particleId) for p in particles], dtype=np.int64).reshape(-1, 5)
        row_of = {tuple(fields): row for row, fields in enumerate(barcode.tolist())}
        sim_hits = [(row_of[_fields(hit.particleId)], hit.time) for hit in self._store.sim_hits(board)]
        sources = self._store.sources(board)
        geometry_id, local, source = [], [], []
        for measurement in self._store.measurements(board):
            parameters = measurement.fullParameters
            geometry_id.append(measurement.geometryId.value)
            local.append((parameters[0], parameters[1]))
            source.append(sim_hits[sources.valuesFor(measurement.index)[0]])
        particle_and_time = np.array(source, dtype=np.float64).reshape(-1, 2)
        return Response(
            module=np.searchsorted(self.modules.geometry_id, np.array(geometry_id, dtype=np.uint64)),
            local=np.array(local, dtype=np.float64).reshape(-1, 2) / UNIT.mm,
            particle=particle_and_time[:, 0].astype(np.int64),
            time=particle_and_time[:, 1] / UNIT.ns,
            barcode=barcode,
            charge=np.array([p.charge / UNIT.e for p in particles], dtype=np.float64),
            vertex=np.array([list(p.position) for p in particles]).reshape(-1, 3) / UNIT.mm,
            momentum=np.array([list(p.momentum) for p in particles]).reshape(-1, 3) / UNIT.GeV,
        )


def _fields(barcode: Any) -> tuple[int, int, int, int, int]:
    return (
        barcode.vertexPrimary,
        barcode.vertexSecondary,
        barcode.particle,
        barcode.generation,
        barcode.subParticle,
    )


def _particle_container(generated: Generated) -> Any:
    container = acts.examples.SimParticleContainer()
    energy = np.linalg.norm(generated.momentum, axis=1)
    columns = zip(
        generated.collision.tolist(),
        generated.from_decay.tolist(),
        generated.pdg.tolist(),
        generated.charge.tolist(),
        generated.mass.tolist(),
        generated.vertex.tolist(),
        (generated.momentum / np.maximum(energy, 1e-30)[:, None]).tolist(),
        energy.tolist(),
        strict=True,
    )
    for number, (collision, from_decay, pdg, charge, mass, vertex, direction, p) in enumerate(columns, 1):
        barcode = acts.examples.SimBarcode()
        barcode.vertexPrimary = collision + 1
        barcode.vertexSecondary = int(from_decay)
        barcode.particle = number
        particle = acts.examples.SimParticle(
            barcode, acts.PdgParticle(pdg), charge * UNIT.e, max(mass, 0.0) * UNIT.GeV
        )
        particle.fourPosition = acts.Vector4(*(value * UNIT.mm for value in vertex))
        particle.direction = acts.Vector3(*direction)
        particle.absoluteMomentum = p * UNIT.GeV
        container.insert(particle)
    return container


def _digitisation(geometry: Any, random: Any, modules: Modules) -> Any:
    """Read-out cells for every volume, from the bounds of its largest module."""
    entries = []
    for volume in np.unique(modules.ids[:, 0]).tolist():
        rows = modules.ids[:, 0] == volume
        half = largest(modules.half_length[rows])
        n_cells = np.round(2 * half / modules.pitch[rows][0]).astype(int)
        axes = [
            {"type": "equidistant", "option": "open", "value": name, "bins": bins, "min": -end, "max": end}
            for name, bins, end in zip(("binX", "binY"), n_cells.tolist(), half.tolist(), strict=True)
        ]
        geometric = {
            "indices": [0, 1],
            "digital": False,
            "threshold": 0.0,
            "thickness": float(modules.thickness[rows].max()),
            "segmentation": {"binningdata": axes},
            "charge-smearing": {"type": "Gauss", "mean": 0.0, "stddev": 0.01},
        }
        entries.append({"volume": volume, "value": {"geometric": geometric}})
    header = {"format-version": 0, "value-identifier": "digitization-configuration"}
    with tempfile.TemporaryDirectory() as folder:  # the bindings take the cells from a JSON file only
        path = Path(folder) / "digitisation.json"
        path.write_text(json.dumps({"acts-geometry-hierarchy-map": header, "entries": entries}))
        cells = acts.examples.json.readDigiConfigFromJson(str(path))
    config = acts.examples.DigitizationAlgorithm.Config(
        digitizationConfigs=cells,
        surfaceByIdentifier=geometry.geoIdSurfaceMap(),
        randomNumbers=random,
        doMerge=False,  # a hit has one particle
        inputSimHits="simhits",
        outputMeasurements="measurements",
        outputMeasurementSimHitsMap="measurement_simhits",
        outputMeasurementParticlesMap="measurement_particles",
        outputParticleMeasurementsMap="particle_measurements",
        outputSimHitMeasurementsMap="simhit_measurements",
    )
    return acts.examples.DigitizationAlgorithm(config, _LEVEL)
