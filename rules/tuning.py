"""Rules derived from simulated events: the layers, the steps between them, and the windows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tritrack.events.layers import derive_layers
from tritrack.physics.fit import curvature_unit
from tritrack.physics.matching import pairs_from_labels
from tritrack.physics.metrics import count
from tritrack.physics.selection import COMPARISON, TARGETS, kinematics, particle_rows, truth_of
from tritrack.rules.finder import RuleFinder
from tritrack.rules.windows import Rules, RulesError, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.events.layers import Layers

    Note = Callable[[str], None]

LEARNT_MIN_PT = 0.8
"""Rules are derived from charged primaries above this transverse momentum, in GeV."""
MIN_SHARE = 0.004
"""A step is kept where this share of the particles that leave a layer take it."""
MIN_TIMES = 4
"""And as many times as this at least."""
MAX_ETA = 4.0
SOFT_PT, MIN_SOFT = 1.5, 100
"""Scattering is measured on tracks below this transverse momentum in GeV, and on so many at least."""
CORE = 0.995
"""Share of the angles that count: the others are of interactions."""
MIN_VISIBLE = 1.5
"""Least ratio of the angles' variance to that which the resolution makes."""
INSIDE = 0.998
"""Share of an event's primaries that come from within the window along the beam."""
CHOICES: dict[str, tuple[float, ...]] = {
    "max_d0": (0.2, 0.4),
    "join": (4.0, 5.0, 6.0),
    "follow": (15.0, 20.0, 30.0),
    "max_chi2": (1.5, 2.0, 3.0),
}
"""What is tried for each window, one window after the other. Wider ones of the first two find more particles from
decays, but take longer than a Kalman filter does in dense events."""
TIE = 0.0005
"""Of values that come this near to the best one, the smallest is taken: it is the fastest."""


class Paths(NamedTuple):
    """Three layers that a particle hits one after the other, one row each.

    Attributes
    ----------
    layer
        int64 [n, 3].
    position
        float64 [n, 3, 3], mm.
    pt
        float64 [n], GeV.
    """

    layer: NDArray[np.int64]
    position: NDArray[np.float64]
    pt: NDArray[np.float64]


def derive_rules(
    sets: Mapping[str, Sequence[Event]],
    *,
    name: str,
    min_pt: float,
    field: float,
    max_hits: int,
    on_note: Note,
) -> Rules:
    """Derive rules from sets of events with truth and local measurements.

    Parameters
    ----------
    sets
        Events by the name of their set. Each set weighs the same.
    name
        Of the rules.
    min_pt
        Transverse momentum that tracks are looked for from, in GeV. Below the targets': a track of 1 GeV may look softer.
    field
        Of the detector, along z, in T.
    max_hits
        Largest event that the finder will take.
    on_note
        Called with a sentence on each choice.

    Raises
    ------
    RulesError
        Where the events show too little of the detector; an event without truth or measurements raises the error of its
        package.
    """
    events = [event for some in sets.values() for event in some]
    layers = derive_layers(events)
    paths = Paths(
        *map(np.concatenate, zip(*(particle_paths(event, layers) for event in events), strict=True))
    )
    layers = replace(layers, scattering=derive_scattering(paths, layers, field=field))
    steps = derive_steps(paths.layer)
    windows = Windows(
        max_curvature=curvature_unit(field) / min_pt,
        max_z0=max(_spread_of_vertices(event) for event in events),
        max_d0=0.4,
        join=5.0,
        follow=20.0,
        min_layers=4,
        long=7,
        max_chi2=2.0,
        max_holes=2,
        max_shared=2,
    )
    rules = Rules(
        name=name, layers=layers, field=field, steps=steps, windows=windows, max_hits=max_hits, metrics={}
    )
    on_note(f"{layers.n} layers, {len(steps)} steps")
    for window, values in CHOICES.items():
        rules = _choose(rules, window, values, sets, on_note=on_note)
    return replace(rules, metrics=judge(RuleFinder(rules), sets))


def _choose(
    rules: Rules, window: str, values: Sequence[float], sets: Mapping[str, Sequence[Event]], *, on_note: Note
) -> Rules:
    """Return the rules with the smallest of a window's values that ties with the best one."""
    changes: list[dict[str, Any]] = [{window: value} for value in values]
    tried = [replace(rules, windows=rules.windows._replace(**change)) for change in changes]
    scores = [_score(judge(RuleFinder(some), sets)) for some in tried]
    chosen = next(i for i, score in enumerate(scores) if score >= max(scores) - TIE)
    on_note(
        f"{window}: {values[chosen]} of "
        + ", ".join(f"{value} ({score:.4f})" for value, score in zip(values, scores, strict=True))
    )
    return tried[chosen]


def judge(finder: RuleFinder, sets: Mapping[str, Sequence[Event]]) -> dict[str, dict[str, float]]:
    """Return what a finder gives on each set: its efficiency by selection of particles, and its rates.

    A rate of nothing is left out.
    """
    found = {}
    for name, events in sets.items():
        pairs = [pairs_from_labels(finder.find(event.hits)) for event in events]
        rates = {}
        for selection in (COMPARISON, TARGETS):
            counts = [
                count(event=event, pairs=some, selection=selection)
                for event, some in zip(events, pairs, strict=True)
            ]
            rates[selection.name] = sum(counts[1:], start=counts[0]).report().rates
        of_tracks = rates[TARGETS.name]
        values = {f"efficiency_{selection}": some.efficiency.value for selection, some in rates.items()}
        values |= {"fake_rate": of_tracks.fake_rate.value, "unmatched_rate": of_tracks.unmatched_rate.value}
        found[name] = {key: float(value) for key, value in values.items() if not math.isnan(value)}
    return found


def _score(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """Efficiency for targets less the rate of unmatched tracks, mean of the sets."""
    key = f"efficiency_{TARGETS.name}"
    for name, some in metrics.items():
        if key not in some:
            raise RulesError(
                f"{name}: no particle of these events is a target, and windows are chosen by these"
            )
    return float(np.mean([some[key] - some.get("unmatched_rate", 0.0) for some in metrics.values()]))


def particle_paths(event: Event, layers: Layers) -> Paths:
    """Return where the particles that rules are derived from hit three layers one after the other."""
    truth = truth_of(event)
    kin = kinematics(truth)
    learnt = (truth.particles.charge != 0) & truth.particles.primary & (kin.pt > LEARNT_MIN_PT)
    learnt &= np.abs(kin.eta) < MAX_ETA
    rows = particle_rows(truth, truth.particle_id)
    hit = np.flatnonzero((rows >= 0) & learnt[rows])
    hit = hit[np.lexsort((truth.order[hit], rows[hit]))]
    particle, layer = rows[hit], layers.of_hits(event.hits)[hit]
    new = np.ones(hit.size, dtype=np.bool_)  # and not a second hit on a layer
    new[1:] = (particle[1:] != particle[:-1]) | (layer[1:] != layer[:-1])
    hit, particle, layer = hit[new], particle[new], layer[new]
    first = np.flatnonzero(particle[2:] == particle[:-2])
    three = first[:, None] + np.arange(3)
    return Paths(layer[three], event.hits[hit[three]].astype(np.float64), kin.pt[particle[first]])


def derive_steps(layer: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the steps from layer to layer, int64 [n_steps, 2], of paths int64 [n, 3].

    Kept are steps to the next layer, and to the one after it for a hit that is lost, that enough of the particles
    which leave a layer take.
    """
    if not len(layer):
        raise RulesError("rules: no particle of the events hits three layers")
    taken = []
    for pairs in (layer[:, :2], layer[:, 1:], layer[:, ::2]):
        pair, n = np.unique(pairs, axis=0, return_counts=True)
        leaving = np.bincount(pairs[:, 0], minlength=layer.max() + 1)
        taken.append(
            pair[(n > MIN_SHARE * leaving[pair[:, 0]]) & (n >= MIN_TIMES) & (pair[:, 0] != pair[:, 1])]
        )
    steps: NDArray[np.int64] = np.unique(np.concatenate(taken), axis=0).astype(np.int64)
    return steps


def derive_scattering(paths: Paths, layers: Layers, *, field: float) -> NDArray[np.float64]:
    """Return how much each layer scatters, float64 [n_layers] (see `tritrack.events.layers.Layers`).

    From the angle across the beam between the ways to a layer and from it, less what the curvature and the resolution
    make of it. Where the resolution hides it, it is the median of the other pixel layers, or the other strip layers.

    Raises
    ------
    RulesError
        Where no pixel layer, or no strip layer, shows it.
    """
    found = np.full(layers.n, np.nan)
    for layer in range(layers.n):
        some = (paths.layer[:, 1] == layer) & (paths.pt < SOFT_PT)
        if np.count_nonzero(some) >= MIN_SOFT:
            turn, blur = _turns(Paths(*(column[some] for column in paths)), layers, field=field)
            kept = np.abs(turn) <= np.quantile(np.abs(turn), CORE)
            spread, blur = np.mean(turn[kept] ** 2), np.mean(blur**2)
            if spread > MIN_VISIBLE * blur:
                found[layer] = np.sqrt(spread - blur)
    for kind in (layers.pixel, ~layers.pixel):
        if kind.any() and np.isnan(found[kind]).all():
            raise RulesError(
                f"rules: fewer than {MIN_SOFT} soft tracks in each layer, too few to see scattering"
            )
        found[kind & np.isnan(found)] = np.nanmedian(found[kind])
    return found


def _turns(paths: Paths, layers: Layers, *, field: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the angle by which each path turns at its middle layer besides its curvature, and what resolution makes of it.

    Both over the curvature and for a layer crossed at right angles, float64 [n], mm.
    """
    x, y, z = np.moveaxis(paths.position, 2, 0)
    before, after = (
        np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]),
        np.hypot(x[:, 2] - x[:, 1], y[:, 2] - y[:, 1]),
    )
    turn = np.arctan2(y[:, 2] - y[:, 1], x[:, 2] - x[:, 1]) - np.arctan2(y[:, 1] - y[:, 0], x[:, 1] - x[:, 0])
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    curvature = curvature_unit(field) / paths.pt
    turn -= curvature * (before + after) / 2
    turn -= np.median(turn)
    # A disk's error in r is one across a track that does not leave along r.
    tilt = np.where(layers.disk[paths.layer], curvature[:, None] / 2 * np.hypot(x, y), 0)
    error = np.hypot(layers.across[paths.layer], tilt * layers.along[paths.layer])
    blur = np.hypot(
        np.hypot(error[:, 0] / before, error[:, 1] * (1 / before + 1 / after)), error[:, 2] / after
    )
    steep = 1 + ((z[:, 1] - z[:, 0]) / before) ** 2
    unit = curvature * np.where(layers.disk[paths.layer[:, 1]], 1, steep**0.25)
    return turn / unit, blur / unit


def _spread_of_vertices(event: Event) -> float:
    particles = truth_of(event).particles
    z = np.abs(particles.vertex[particles.primary & (particles.charge != 0), 2])
    return float(np.quantile(z, INSIDE)) if z.size else 0.0
