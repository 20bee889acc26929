"""The sections of what a server costs and bears: service, memory, load, tail latency, instances."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from tritrack.bench.load_generator.figures import say_clients
from tritrack.bench.pages.page import plots, table
from tritrack.bench.pages.pictures import Series, lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tritrack.bench.load import Result as Loads
    from tritrack.bench.load_generator.figures import Load
    from tritrack.bench.memory import Result as Memories
    from tritrack.bench.serving.service_cost import Cost, Figure
    from tritrack.bench.serving.service_cost import Result as Service
    from tritrack.bench.sweep import Result as Sweep
    from tritrack.bench.tail_latency import Result as TailLatencies
    from tritrack.bench.tail_latency import Row as Tails

_ABOUT_SERVICE = (
    "<p class='note'>Large: the median; small: an interval that holds it 19 times of 20, and the samples, each an event in "
    "a round beside the same event in process. Times as of this machine.</p>"
)
_ABOUT_TAILS = (
    "<p class='note'>Latency counts from when an event was due. Queue: the mean wait for all of the server's models. The "
    "generator may have set the pace where it took more than 0.7 of a core or sent more than 1 % of the events over 10 ms "
    "late. A quantile q stands where there are 10 / (1 - q) requests or more, and it is none of those without an answer, "
    "which wait longest. Times as of this machine.</p>"
)
_QUANTILES = {"p50": "p50", "p95": "p95", "p99": "p99", "p999": "p99.9"}
"""Fields of `tritrack.bench.load_generator.figures.Latency`, and what they are called on the page."""

_VERDICTS = {True: "met", False: "not met", None: "cannot be told: too few samples, or too near"}


def service(result: Service) -> str:
    """Return what `tritrack.bench.service` measured."""
    goals = [
        [escape(f"{goal.events}: {goal.name}"), _figure(goal.figure), _VERDICTS[goal.met]]
        for goal in result.goals
    ]
    added = [[*_named(cost), *_added(cost)] for cost in result.costs]
    heads = [
        "events, model",
        "way",
        "more than in process, ms",
        "the same, processor time",
        "not computing, ms",
    ]
    parts = [[*_named(cost), *_parts(cost)] for cost in result.costs if cost.missing is None]
    kept = [[escape(row.events), str(row.in_flight), _figure(row.ratio)] for row in result.throughputs]
    return "".join(
        [
            _ABOUT_SERVICE,
            f"<h3>Goals</h3>{table(['goal', 'measured', ''], goals)}" if goals else "",
            f"<h3>What it adds to an event</h3>{table([*heads, 'in process by this'], added)}",
            "<h3>Where the time goes</h3><p class='note'>Mean of all samples, ms of an event.</p>",
            table(
                [
                    "events, model",
                    "way",
                    "encode",
                    "queue",
                    "move",
                    "compute",
                    "way and Triton",
                    "decode",
                    "in process",
                ],
                parts,
            ),
            "<h3>Throughput of the ensemble by the fused model's</h3>",
            table(["events", "requests in flight", "ratio"], kept),
        ]
    )


def _named(cost: Cost) -> list[str]:
    hits = f"{cost.n_events} events, {cost.n_hits // max(cost.n_events, 1):,} hits each"
    return [f"{escape(cost.events)}, {escape(cost.model)}<small>{hits}</small>", escape(cost.way)]


def _added(cost: Cost) -> list[str]:
    if cost.missing is not None:
        return [escape(f"not measured: {cost.missing}")]
    figures = (cost.added_ms, cost.cpu_added_ms, cost.outside_ms, cost.ratio)
    return [_figure(figure) for figure in figures]


def _parts(cost: Cost) -> list[str]:
    parts = (cost.encode_ms, cost.queue_ms, cost.moved_ms, cost.compute_ms, cost.transfer_ms, cost.decode_ms)
    return [f"{value:.2f}" for value in (*parts, cost.in_process_ms)]


def _figure(figure: Figure | None) -> str:
    if figure is None or figure.p50 is None:
        return f"<small>too few samples: {0 if figure is None else figure.n}</small>"
    interval = "" if figure.low is None else f"<small>{figure.low:.3g} to {figure.high:.3g}</small>"
    return f"{figure.p50:.3g}{interval}<small>n = {figure.n}</small>"


def memory(result: Memories) -> str:
    """Return what `tritrack.bench.memory` measured."""
    rows = [
        [
            f"{escape(row.model)}<small>n = {row.n_found + row.n_refused:,} requests, {row.n_refused:,} refused</small>",
            f"{row.before.own:.0f}",
            f"{row.own.second_quarter:.0f}",
            f"{row.own.last_quarter:.0f}",
            f"{row.own.per_1000_requests:+.1f}",
            f"{row.own.peak:.0f}",
        ]
        for row in result.rows
    ]
    heads = ["model", "before", "second quarter", "last quarter", "growth for 1,000 requests", "peak"]
    series = [
        Series(
            name=row.model,
            x=tuple(float(each.requests) for each in row.series),
            y=tuple(each.own for each in row.series),
        )
        for row in result.rows
    ]
    picture = lines(series, x="requests", y="memory of the server [MB]")
    return (
        "<p class='note'>Memory of all of a server's processes, pages that they share counted once, in MB (10^6 bytes).</p>"
        f"{table(heads, rows)}{plots([('memory against requests', picture)])}"
    )


def load(result: Loads) -> str:
    """Return what `tritrack load` measured."""
    closed = [each for each in result.loads if each.loop == "closed"]
    return (
        f"<p class='note'>{escape(result.model)}, {result.n_events} events of together {result.n_hits:,} hits, sent again "
        "and again. Times as of this machine.</p>"
        f"{table(_LOAD_HEADS, [_load_cells(each) for each in result.loads])}{_load_pictures({result.model: closed})}"
    )


_LOAD_HEADS = [
    *("load", "events/s", "hits/s", *(f"{name}, ms" for name in _QUANTILES.values())),
    *("queue, ms", "server, cores", "generator, cores", "no answer"),
]


def _load_cells(each: Load) -> list[str]:
    name = f"{each.rate:.3g} due in a second" if each.rate is not None else say_clients(each.n_clients)
    times = (*(getattr(each.latency, quantile) for quantile in _QUANTILES), each.queue())
    return [
        f"{name}<small>n = {each.latency.n:,} in {each.seconds:.0f} s</small>",
        f"{each.events_per_s:.2f}",
        f"{each.hits_per_s:,.0f}",
        *("" if seconds is None else f"{seconds * 1e3:,.0f}" for seconds in times),
        "" if each.process is None else f"{each.process.cores:.2f}",
        f"{each.generator_cores:.2f}{'<small>may have set the pace</small>' if each.saturated else ''}",
        ", ".join(f"{count:,} {kind}" for kind, count in each.errors.by_kind().items()) or "0",
    ]


def tail_latency(result: TailLatencies) -> str:
    """Return what `tritrack.bench.tail_latency` measured."""
    parts = [_ABOUT_TAILS]
    for row in result.rows:
        cells = [_load_cells(row.closed), *(_load_cells(point.load) for point in row.points)]
        shares = ["throughput", *(f"{point.share:g} of it" for point in row.points)]
        parts.append(
            f"<h3>{escape(row.events)}: {len(row.n_hits)} events of {min(row.n_hits):,} to {max(row.n_hits):,} hits</h3>"
        )
        parts.append(
            table(["", *_LOAD_HEADS], [[share, *some] for share, some in zip(shares, cells, strict=True)])
        )
        curves = _tail_curves(row)
        if curves:
            picture = lines(curves, x="arrivals [share of the throughput]", y="latency [ms]", log_y=True)
            parts.append(plots([(f"{row.events}: latency against arrivals", picture)]))
    return "".join(parts)


def _tail_curves(row: Tails) -> list[Series]:
    """Return each quantile against the share, where there are answers enough."""
    curves = []
    for quantile, name in reversed(_QUANTILES.items()):  # the legend from above, as the curves lie
        told = [
            (point.share, 1e3 * seconds)
            for point in row.points
            if (seconds := getattr(point.load.latency, quantile)) is not None
        ]
        if told:
            x, y = zip(*told, strict=True)
            curves.append(Series(name=name, x=x, y=y))
    return curves


def _load_pictures(loads: dict[str, list[Load]]) -> str:
    """Return latency against throughput, and throughput against clients, of closed loops by name."""
    curves, rates = [], []
    for name, some in loads.items():
        told = [(each.events_per_s, each.latency.p50) for each in some if each.latency.p50 is not None]
        if told:
            x, y = zip(*told, strict=True)
            curves.append(Series(name=name, x=x, y=tuple(1e3 * value for value in y)))
        clients = tuple(float(each.n_clients or 0) for each in some)
        rates.append(Series(name=name, x=clients, y=tuple(each.events_per_s for each in some)))
    pictures = []
    if curves:
        picture = lines(curves, x="events answered [1/s]", y="latency, p50 [ms]")
        pictures.append(("latency against throughput", picture))
    if any(len(each.x) > 1 for each in rates):
        picture = lines(rates, x="clients", y="events answered [1/s]", log_x=True)
        pictures.append(("throughput against clients", picture))
    return plots(pictures)


def sweep(result: Sweep) -> str:
    """Return what `tritrack.bench.sweep` measured."""
    rows = [
        [
            f"{escape(row.setting)}<small>{say_clients(row.n_clients)}</small>",
            f"{np.median(row.ratio):.2f}<small>{min(row.ratio):.2f} to {max(row.ratio):.2f}, n = {len(row.ratio)}</small>",
            f"{np.median(row.cpu_ratio):.2f}" if row.cpu_ratio else "",
            f"{np.median([each.events_per_s for each in row.loads]):.2f}",
            _median_p50(row.loads),
        ]
        for row in result.rows
    ]
    heads = ["instances", "throughput by one instance each", "processor time likewise", "events/s", "p50, ms"]
    loads: dict[str, list[Load]] = {}
    for row in result.rows:
        middle = sorted(row.loads, key=lambda each: each.events_per_s)[len(row.loads) // 2]
        loads.setdefault(f"instances {row.setting}", []).append(middle)
    return (
        f"<p class='note'>{len(result.n_hits)} events of {min(result.n_hits):,} to {max(result.n_hits):,} hits; the heaviest "
        f"step is {escape(result.heaviest)} ({100 * result.heaviest_share:.0f} % of the time of all). Best setting: {escape(result.best)}. Times as of this machine.</p>"
        f"{table(heads, rows)}{_load_pictures(loads)}"
    )


def _median_p50(loads: Sequence[Load]) -> str:
    told = [each.latency.p50 for each in loads if each.latency.p50 is not None]
    n = f"<small>n = {sum(each.latency.n for each in loads):,}</small>"
    return f"{1e3 * float(np.median(told)):,.0f}{n}" if told else n
