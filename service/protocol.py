"""What the two clients share: requests, checks, retries, and what a server says about itself. No I/O."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

from tritrack.events.event import Event
from tritrack.service.errors import (
    EventRefusedError,
    MismatchError,
    ModelNotFoundError,
    NoMemoryError,
    RequestTimeoutError,
    ServiceError,
    UnavailableError,
)
from tritrack.stages.card import default_name
from tritrack.stages.contract import (
    CONTRACT_VERSION,
    EVENT_OFFSETS,
    FITTED,
    HITS,
    NO_MEMORY,
    NO_TRACK,
    TRACK_LABEL,
    ContractError,
    check_hits,
    check_labels,
    check_tensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from tritonclient.utils import InferenceServerException

    from tritrack.stages.card import WorkingPointName
    from tritrack.stages.contract import TensorSpec

CHANNEL_ARGUMENTS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Without this a channel that failed once refuses calls for a second and more, whatever the retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A worker node's http_proxy is a cache for files; gRPC would take it for the way to the server.
    ("grpc.enable_http_proxy", 0),
)

FIRST_DELAY = 0.1
LONGEST_DELAY = 2.0

# "[request id: ...] in ensemble 'track_finder', " and the like, before the step's own sentence.
_PREAMBLE = re.compile(r"^(\[request id: [^\]]*\]\s*)?(in ensemble '[^']*',\s*)?")

# How gRPC itself says that no server answered; a status of UNAVAILABLE may as well be the server's own answer.
_NO_CONNECTION = re.compile(
    r"failed to connect|errors? resolving|DNS resolution failed|Socket closed|recvmsg|sendmsg|Connection (reset|refused)|"
    r"Broken pipe|GOAWAY|Stream removed|Transport closed|(keepalive|ping).* timeout",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says about itself and its model.

    Attributes
    ----------
    url
        HOST:PORT.
    server_version
        Version of the tritonserver.
    model
        Name of the ensemble.
    working_point
        The working point that the ensemble runs at; None for a model without.
    working_points
        Those that the server has, from the least time to the most tracks.
    metrics
        What the model gave on validation events at this point, by name, for each set of events.
    contract_version
        Version of the tensor contract that it speaks.
    card_name, card_sha256
        Which model card it serves, or which rules.
    n_columns
        Columns of HITS.
    max_hits, max_pairs, max_edges
        The model's limits; the rule-based finder has the first alone.
    steps
        The ensemble's steps, in order; of the chain in one process, that model itself.
    outputs
        Names of the tensors that it answers with.
    """

    url: str
    server_version: str
    model: str
    working_point: WorkingPointName | None
    working_points: tuple[WorkingPointName, ...]
    metrics: dict[str, dict[str, float]]
    contract_version: int
    card_name: str
    card_sha256: str
    n_columns: int
    max_hits: int
    max_pairs: int | None
    max_edges: int | None
    steps: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def default_model(self) -> str:
        """Name of the model at its default working point; the server may have others of its points alone."""
        return default_name(self.model, self.working_point)

    @property
    def fits(self) -> bool:
        """Whether this client speaks the server's contract."""
        return self.contract_version == CONTRACT_VERSION

    def require_fit(self) -> None:
        """Raise MismatchError where the client does not fit the server."""
        if not self.fits:
            raise MismatchError(
                f"{self.url} speaks contract version {self.contract_version}, this client {CONTRACT_VERSION}: "
                "install the tritrack version that the server was set up with"
            )

    def require_finder(self) -> None:
        """Raise MismatchError where the model takes hits, as the fit does, but finds no tracks."""
        if TRACK_LABEL.name not in self.outputs:
            raise MismatchError(
                f"{self.url}: the model {self.model} there finds no tracks: it answers with "
                f"{', '.join(self.outputs)}, a finder with {TRACK_LABEL.name}"
            )

    def require_point(self, working_point: str) -> None:
        """Raise UnavailableError where the server has no such working point."""
        if working_point not in self.working_points:
            raise UnavailableError(
                f"{self.url} has no working point {working_point}, it has {', '.join(self.working_points) or 'none'}"
            )


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """The server's own account of one step, since its start; working points may share the step.

    Attributes
    ----------
    name
        Name of the step.
    count
        Requests taken through the step; Triton counts those that a Python step refused among them.
    queue_ns, compute_ns
        Total time that these requests waited, and that the step took with them (moving tensors in and out
        of the step included), in ns.
    moved_ns
        Of ``compute_ns``, what moving the tensors in and out took.
    """

    name: str
    count: int
    queue_ns: int
    compute_ns: int
    moved_ns: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """One event on its way.

    Attributes
    ----------
    name
        How messages call it, and the server's log.
    hits
        float32 [n_hits, n_columns].
    """

    name: str
    hits: NDArray[Any]

    def check(self, info: ServerInfo) -> None:
        """Check the hits (raises EventRefusedError)."""
        try:
            check_hits(self.hits, n_columns=info.n_columns, max_hits=info.max_hits)
        except ContractError as error:
            hint = "; convert with astype('float32')" if self.hits.dtype != HITS.dtype else ""
            raise EventRefusedError(f"{self.name}: {error}{hint}") from None

    def fit_inputs(self, info: ServerInfo, labels: NDArray[Any]) -> list[Any]:
        """Check hits and labels and return the tensors of a request for the fit (raises EventRefusedError)."""
        self.check(info)
        try:
            check_labels(labels, n_hits=self.hits.shape[0])
        except ContractError as error:
            raise EventRefusedError(f"{self.name}: {error}") from None
        return [_wire_tensor(HITS, self.hits), _wire_tensor(TRACK_LABEL, labels)]

    def fitted(self, result: Any, labels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the server's fit, a row for each track, to be written to (raises ServiceError)."""
        n_tracks = int(labels.max(initial=NO_TRACK)) + 1
        return np.array(_answer(self.name, result, FITTED, {"n_tracks": n_tracks}))


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One event or several in one request.

    Attributes
    ----------
    events
        At least one.
    """

    events: tuple[Request, ...]

    @property
    def name(self) -> str:
        """How messages call it."""
        first, last = self.events[0].name, self.events[-1].name
        return first if len(self.events) == 1 else f"the {len(self.events)} events from {first} to {last}"

    def inputs(self, info: ServerInfo) -> list[Any]:
        """Check the events and return the request's tensors; of one event HITS alone.

        Raises
        ------
        EventRefusedError
            Where one of the events, or all of them together, cannot be sent.
        MismatchError
            Where the model is no finder.
        """
        info.require_finder()
        for event in self.events:
            event.check(info)
        if len(self.events) == 1:
            return [_wire_tensor(HITS, self.events[0].hits)]
        offsets = self._offsets()
        if offsets[-1] > info.max_hits:
            raise EventRefusedError(
                f"{self.name}: {offsets[-1]} hits together, the model's limit max_hits is {info.max_hits}"
            )
        hits = np.concatenate([event.hits for event in self.events])
        return [_wire_tensor(HITS, hits), _wire_tensor(EVENT_OFFSETS, offsets)]

    def labels(self, result: Any) -> list[NDArray[np.int64]]:
        """Return the labels of the server's answer for each event, one per hit (raises ServiceError)."""
        offsets = self._offsets().tolist()
        labels = _answer(self.name, result, TRACK_LABEL, {"n_hits": offsets[-1]})
        # Copies, which can be written to.
        return [np.array(labels[first:last]) for first, last in pairwise(offsets)]

    def halves(self) -> tuple[Pack, Pack]:
        """Return the first and the second half of several events."""
        middle = len(self.events) // 2
        return Pack(events=self.events[:middle]), Pack(events=self.events[middle:])

    def _offsets(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(event.hits.shape[0] for event in self.events)], dtype=np.int64)


def _wire_tensor(spec: TensorSpec, array: NDArray[Any]) -> Any:
    tensor = InferInput(spec.name, list(array.shape), np_to_triton_dtype(spec.dtype))
    return tensor.set_data_from_numpy(array)


def _answer(name: str, result: Any, spec: TensorSpec, sizes: dict[str, int]) -> NDArray[Any]:
    """Return a tensor of the server's answer to the request of that name (raises ServiceError)."""
    array: NDArray[Any] | None = result.as_numpy(spec.name)
    if array is None:
        raise ServiceError(f"{name}: the server's answer holds no {spec.name}")
    try:
        check_tensor(array, spec, sizes)
    except ContractError as error:
        raise ServiceError(f"{name}: the server's answer breaks the contract: {error}") from None
    return array


def make_packs(
    events: Iterable[Event | NDArray[Any]], *, pack_hits: int | None
) -> Iterator[Pack | Exception]:
    """Put events, in order, into packs of at most so many hits; an event with more is a pack of its own.

    An event without hits counts as one, so that packs end however many of them there are.

    Parameters
    ----------
    events
        Read as they are needed, at most one ahead.
    pack_hits
        Most hits of a pack; None sends each event by itself.

    Yields
    ------
    Pack or Exception
        The latter as the last one, where ``events`` fails: its place is after those before it.
    """
    pack: list[Request] = []
    n_hits = 0
    requests = (make_request(event, position=position) for position, event in enumerate(events))
    failure = None
    while failure is None:
        try:
            request = next(requests)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 (whatever the caller's events raise)
            failure = error
            continue
        more = max(request.hits.shape[0], 1) if request.hits.ndim else 1
        if pack and n_hits + more > (pack_hits or 0):
            yield Pack(events=tuple(pack))
            pack, n_hits = [], 0
        pack.append(request)
        n_hits += more
        if n_hits >= (pack_hits or 0):
            yield Pack(events=tuple(pack))
            pack, n_hits = [], 0
    if pack:
        yield Pack(events=tuple(pack))
    if failure is not None:
        yield failure


def make_request(event: Event | NDArray[Any], *, position: int | None = None) -> Request:
    """Name an event: by its number, or by its place among those sent."""
    if isinstance(event, Event):
        return Request(name=f"event {event.event_id}", hits=event.hits)
    name = "the event" if position is None else f"event {position} of those sent, counted from 0"
    return Request(name=name, hits=np.asarray(event))


def check_counts(*, in_flight: int, pack_hits: int | None) -> None:
    """Raise ValueError where one of the options of ``find_many`` is no count."""
    for name, count in (("in_flight", in_flight), ("pack_hits", pack_hits)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: {count} given, at least 1 wanted")


def accepted(
    found: Iterable[NDArray[np.int64] | ServiceError], return_refusals: bool
) -> Iterator[NDArray[np.int64] | ServiceError]:
    """Yield the labels of events; the error of one in its place too, or raised there."""
    for one in found:
        if isinstance(one, ServiceError) and not return_refusals:
            raise one
        yield one


def retry_delays(retries: int) -> Iterator[float | None]:
    """Yield the seconds to wait after each failed attempt; None after the last one."""
    for attempt in range(retries):
        yield min(FIRST_DELAY * 2**attempt, LONGEST_DELAY)
    yield None


def loaded_models(index: Any) -> tuple[str, ...]:
    """Read a ``RepositoryIndexResponse``: the names of the models that are ready, in order."""
    return tuple(sorted({model.name for model in index.models if model.state == "READY"}))


def is_not_found(error: InferenceServerException) -> bool:
    """Whether the server lacks the model."""
    return bool(error.status() == "StatusCode.NOT_FOUND")


def is_unavailable(error: InferenceServerException) -> bool:
    """Whether another attempt may help."""
    return bool(error.status() == "StatusCode.UNAVAILABLE")


def translate(
    error: InferenceServerException,
    *,
    name: str,
    url: str,
    timeout: float,
    retries: int,
    loaded: tuple[str, ...] = (),
) -> ServiceError:
    """Say in the client's words what a failed call means, and which models are loaded where one is not."""
    message = _PREAMBLE.sub("", str(error.message() or "no reason given"))
    match error.status():
        case "StatusCode.INVALID_ARGUMENT":
            return EventRefusedError(f"{name}: refused by {url}: {message}")
        case "StatusCode.DEADLINE_EXCEEDED":
            return RequestTimeoutError(
                f"{name}: no answer from {url} within {timeout:g} s; allow more time or send fewer events at once"
            )
        case "StatusCode.NOT_FOUND":
            there = f"; it has {', '.join(loaded)}" if loaded else ""
            return ModelNotFoundError(f"{name}: {url} has no such model loaded ({message}){there}")
        case "StatusCode.UNAVAILABLE":
            attempts = "" if retries == 0 else f" after {retries + 1} attempts"
            if NO_MEMORY in message:
                return NoMemoryError(f"{name}: {url} could not take it{attempts}: {message}")
            hint = (
                "; is the server running, is this its gRPC port, and does it speak TLS, or not?"
                if _NO_CONNECTION.match(message)
                else ""
            )
            return UnavailableError(f"{name}: {url} is not available{attempts} ({message}){hint}")
        case _:
            return ServiceError(f"{name}: {url} failed: {message}")


def server_info(*, url: str, metadata: Any, config: Any) -> ServerInfo:
    """Read what a server says about itself.

    Parameters
    ----------
    url
        HOST:PORT.
    metadata
        ``ServerMetadataResponse``.
    config
        ``ModelConfig`` of the ensemble.

    Raises
    ------
    MismatchError
        Where the model is not one of tritrack's.
    """
    values = {key: parameter.string_value for key, parameter in config.parameters.items()}
    try:
        return ServerInfo(
            url=url,
            server_version=metadata.version,
            model=config.name,
            working_point=cast("WorkingPointName | None", values.get("working_point")),
            working_points=cast(
                "tuple[WorkingPointName, ...]", tuple(values.get("working_points", "").split())
            ),
            metrics=json.loads(values["metrics"]),
            contract_version=int(values["contract_version"]),
            card_name=values["card_name"],
            card_sha256=values["card_sha256"],
            n_columns=int(config.input[0].dims[1]),
            max_hits=int(values["max_hits"]),
            max_pairs=int(values["max_pairs"]) if "max_pairs" in values else None,
            max_edges=int(values["max_edges"]) if "max_edges" in values else None,
            # The chain in one process is a single step, and so is the rule-based finder.
            steps=tuple(step.model_name for step in config.ensemble_scheduling.step) or (config.name,),
            outputs=tuple(output.name for output in config.output),
        )
    except (KeyError, IndexError):
        raise MismatchError(f"{url}: the model {config.name} there is not one of tritrack's") from None


def step_statistics(response: Any, steps: tuple[str, ...]) -> tuple[StepStatistics, ...]:
    """Read a ``ModelStatisticsResponse``: the given steps, in their order."""
    by_name = {model.name: model.inference_stats for model in response.model_stats}
    return tuple(
        StepStatistics(
            name=step,
            count=stats.success.count,
            queue_ns=stats.queue.ns,
            compute_ns=stats.compute_infer.ns + moved_ns,
            moved_ns=moved_ns,
        )
        for step in steps
        if (stats := by_name.get(step)) is not None
        for moved_ns in [stats.compute_input.ns + stats.compute_output.ns]
    )
