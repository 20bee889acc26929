"""Whether a server's memory stays flat: ``python -m tritrack.bench.memory --events EVENTS --out FILE.json``.

Requests of mixed sizes, some of them refused, go one after the other to a real server, to the ensemble and then to the
model in one process, each in a server of its own. Every so often the memory of the server's processes is read.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tritonclient.grpc as triton_grpc
import typer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritrack.bench.result import Header, make_header, write_result
from tritrack.bench.serving.processes import family, own_memory, resident_memory, shared_bytes
from tritrack.bench.timeout import TIMEOUT
from tritrack.ensemble_repo.render import render_repository
from tritrack.events.source import read_all
from tritrack.failures import UsageError, one_sentence
from tritrack.service.server import Server
from tritrack.stages.card import ENSEMBLE, FUSED, WorkingPointName, ensemble_name, read_card
from tritrack.stages.contract import HITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import psutil
    from numpy.typing import NDArray


SMALLEST, LARGEST = 100, 3000
"""Hits of a request."""

REFUSED = 20
"""One of so many requests has a hit that is no number, and one of ten times as many is over the limit of hits."""

MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A server at one moment, in 10^6 bytes.

    Attributes
    ----------
    requests
        Requests answered so far.
    own
        What its processes have of their own, and ``shm``: the figure that counts. Pages of files (programs and
        libraries) are left out.
    resident
        The pages of each process, shared ones counted in each (RSS).
    shm
        The regions in `/dev/shm` between the server and its steps, each once.
    """

    requests: int
    own: float
    resident: float
    shm: float


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What a server's memory did, in 10^6 bytes.

    Attributes
    ----------
    peak
        The most.
    second_quarter, last_quarter
        Means over these quarters of the requests.
    growth
        The last quarter's more than the second's.
    per_1000_requests
        ``growth`` for as many requests; half of all lie between the middles of the two quarters.
    """

    peak: float
    second_quarter: float
    last_quarter: float
    growth: float
    per_1000_requests: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in a server of its own.

    Attributes
    ----------
    model
        The ensemble or the fused model.
    n_found, n_refused
        Requests that were answered with labels, and those refused as they should be.
    before
        The server when it was ready, before the first request.
    series
        The server after every so many requests.
    own, resident, shm
        What each of these did.
    """

    model: str
    n_found: int
    n_refused: int
    before: Memory
    series: tuple[Memory, ...]
    own: Growth
    resident: Growth
    shm: Growth


@dataclass(frozen=True, kw_only=True)
class Result:
    """A server's memory under mixed requests."""

    header: Header
    seed: int
    rows: tuple[Row, ...]

    def ratios(self) -> dict[str, float]:
        """Return memory in the second quarter by memory in the last: 1 is flat."""
        return {f"{row.model}: flat": row.own.second_quarter / row.own.last_quarter for row in self.rows}


def growth_of(values: Sequence[float], *, n_requests: int) -> Growth:
    """Return what a series did that was read in equal steps of the requests, at least four times."""
    quarters = np.array_split(np.asarray(values, dtype=np.float64), 4)
    second, last = float(quarters[1].mean()), float(quarters[3].mean())
    return Growth(
        peak=max(values),
        second_quarter=second,
        last_quarter=last,
        growth=last - second,
        per_1000_requests=(last - second) / (n_requests / 2) * 1000,
    )


def read_memory(processes: Iterable[psutil.Process], *, requests: int) -> Memory:
    """Read the memory of a server's processes."""
    processes = list(processes)
    shm = shared_bytes(processes)
    return Memory(
        requests=requests,
        own=(sum(map(own_memory, processes)) + shm) / MEGABYTE,
        resident=sum(map(resident_memory, processes)) / MEGABYTE,
        shm=shm / MEGABYTE,
    )


def draw_requests(
    events: Sequence[NDArray[np.float32]], *, n_requests: int, max_hits: int, seed: int
) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Yield the hits of each request, and whether they must be refused.

    A request is a window of an event in phi, where hits lie as densely as in the whole event. Its size is drawn
    evenly from 100 to 3,000 hits (or what the event has).
    """
    rng = np.random.default_rng(seed)
    by_phi = [hits[np.argsort(np.arctan2(hits[:, 1], hits[:, 0]))] for hits in events]
    for request in range(n_requests):
        hits = by_phi[rng.integers(len(by_phi))]
        n_hits = min(int(rng.integers(SMALLEST, LARGEST + 1)), len(hits))
        window = np.roll(hits, -int(rng.integers(len(hits))), axis=0)[:n_hits]
        if request % (10 * REFUSED) == REFUSED // 2:
            yield np.zeros((max_hits + 1, hits.shape[1]), dtype=HITS.dtype), True
        elif request % REFUSED == 0:
            window[rng.integers(n_hits)] = np.nan
            yield window, True
        else:
            yield window, False


def send(client: triton_grpc.InferenceServerClient, model: str, hits: NDArray[np.float32]) -> bool:
    """Send hits as they are, unlike `TrackFinder`, which refuses some itself; return whether they got labels."""
    tensor = triton_grpc.InferInput(HITS.name, list(hits.shape), np_to_triton_dtype(hits.dtype))
    try:
        client.infer(model, [tensor.set_data_from_numpy(hits)], client_timeout=TIMEOUT)
    except InferenceServerException as error:
        if error.status() != "StatusCode.INVALID_ARGUMENT":
            raise
        return False
    return True


class WrongRefusalError(RuntimeError):
    """A request that was refused and should not have been, or the other way round; the message says which."""


def measure(
    server: Server,
    model: str,
    requests: Iterable[tuple[NDArray[np.float32], bool]],
    *,
    n_requests: int,
    every: int,
) -> Row:
    """Send requests to a server that runs, and read its memory after every so many (raises WrongRefusalError)."""
    processes = family(server.pid)
    before = read_memory(processes, requests=0)
    series: list[Memory] = []
    n_refused = 0
    with triton_grpc.InferenceServerClient(server.url) as client:
        for number, (hits, bad) in enumerate(requests, start=1):
            refused = not send(client, model, hits)
            if refused != bad:
                raise WrongRefusalError(
                    f"request {number}, {len(hits)} hits: refused is {refused}, not {bad}"
                )
            n_refused += refused
            if number % every == 0:
                series.append(read_memory(processes, requests=number))
    return Row(
        model=model,
        n_found=n_requests - n_refused,
        n_refused=n_refused,
        before=before,
        series=tuple(series),
        own=growth_of([memory.own for memory in series], n_requests=n_requests),
        resident=growth_of([memory.resident for memory in series], n_requests=n_requests),
        shm=growth_of([memory.shm for memory in series], n_requests=n_requests),
    )


def main(
    *,
    events: Annotated[list[Path], typer.Option(help="Events; may be given again.")],
    out: Annotated[Path, typer.Option(help="JSON file for the figures.")],
    engines: Annotated[Path, typer.Option(help="Folder of engines.")] = Path("build/engines"),
    working_point: Annotated[
        WorkingPointName | None, typer.Option(help="Working point; the card's default if not given.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each step.")] = 1,
    n_requests: Annotated[int, typer.Option("--requests", min=8, help="Requests to each model.")] = 2000,
    every: Annotated[int, typer.Option(min=1, help="Requests from one reading to the next.")] = 20,
    seed: Annotated[int, typer.Option(help="Of sizes and order.")] = 1,
) -> None:
    """Send mixed requests to ensemble and fused model, and write how their servers' memory went as JSON."""
    if n_requests % every or n_requests // every % 4:
        raise UsageError(
            f"--requests {n_requests}, --every {every}: the readings do not make four equal quarters"
        )
    card = read_card(engines)
    hits = [event.hits for event in read_all(events) if event.n_hits >= SMALLEST]
    if not hits:
        raise UsageError(f"bench.memory: no event with {SMALLEST} hits among those given")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        render_repository(
            engines=engines, out=repository, server="embedded", device="cpu", threads=threads, fused=True
        )
        for model in (ensemble_name(working_point, ensemble=one) for one in (ENSEMBLE, FUSED)):
            requests = draw_requests(hits, n_requests=n_requests, max_hits=card.limits.max_hits, seed=seed)
            with Server(repository, models=[model], start_timeout=TIMEOUT) as server:
                row = measure(server, model, requests, n_requests=n_requests, every=every)
            rows.append(row)
            print(_line(row), flush=True)
    header = make_header(
        "memory",
        card=card,
        working_point=working_point,
        threads=threads,
        packages=("tritrack", "numpy", "numba", "onnxruntime", "nvidia-pytriton"),
    )
    write_result(Result(header=header, seed=seed, rows=tuple(rows)), out)


def _line(row: Row) -> str:
    own = row.own
    return (
        f"{row.model}, {row.n_found} requests found and {row.n_refused} refused: {row.before.own:.0f} MB before, "
        f"{own.second_quarter:.1f} MB in the second quarter, {own.last_quarter:.1f} in the last, "
        f"{own.per_1000_requests:+.2f} MB for 1,000 requests; in /dev/shm {row.shm.peak:.1f} MB at most, "
        f"{row.shm.per_1000_requests:+.2f}"
    )


if __name__ == "__main__":
    with one_sentence(extra="server"):
        typer.run(main)
