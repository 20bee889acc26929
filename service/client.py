"""The client: hits in, one label per hit out."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tritrack.service.access import PLAIN, Access
from tritrack.service.errors import OF_ONE_EVENT, ModelNotFoundError, RequestTimeoutError
from tritrack.service.protocol import (
    CHANNEL_ARGUMENTS,
    Pack,
    ServerInfo,
    StepStatistics,
    accepted,
    check_counts,
    is_not_found,
    is_unavailable,
    loaded_models,
    make_packs,
    make_request,
    retry_delays,
    server_info,
    step_statistics,
    translate,
)
from tritrack.stages.card import ENSEMBLE, ensemble_name
from tritrack.stages.contract import FIT_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.service.errors import ServiceError
    from tritrack.stages.card import WorkingPointName

    Found = NDArray[np.int64] | ServiceError

T = TypeVar("T")


class TrackFinder:
    """Finds tracks through a server; may be used from several threads.

    Parameters
    ----------
    url
        HOST:PORT of the server's gRPC service.
    working_point
        "fast", "balanced" or "best"; None for the server's default.
    model
        Name of the ensemble at the default working point; with ``working_point`` it need not be loaded.
    timeout
        Seconds that each attempt may take.
    retries
        How often a call is repeated when the server is unavailable, 0.1 s later at first and twice as long
        each time (2 s at most). Nothing else is repeated.
    access
        TLS, and headers such as a token, where the server or a proxy before it wants them.

    Notes
    -----
    The first call asks the server whether this client fits it (raises MismatchError), and whether it has the
    working point (raises UnavailableError). Each request carries the name that messages give its event, such as
    "event 7", as its id, by which it is found in the server's log.
    """

    def __init__(
        self,
        url: str,
        *,
        working_point: WorkingPointName | None = None,
        model: str = ENSEMBLE,
        timeout: float = 60.0,
        retries: int = 4,
        access: Access = PLAIN,
    ) -> None:
        self.url = url
        self.working_point = working_point
        self.model = ensemble_name(working_point, ensemble=model)
        self._default_model = model
        self.timeout = timeout
        self.retries = retries
        self._client = InferenceServerClient(
            url, creds=access.credentials(), channel_args=list(CHANNEL_ARGUMENTS)
        )
        self._client.register_plugin(access.sign)
        self._info: ServerInfo | None = None

    def find(self, event: Event | NDArray[np.float32]) -> NDArray[np.int64]:
        """Find the tracks of one event.

        Parameters
        ----------
        event
            The event, or its hits: float32 [n_hits, n_columns], x, y, z in mm.

        Returns
        -------
        ndarray
            int64 [n_hits], the track number of each hit or -1, in the order of the hits.

        Raises
        ------
        EventRefusedError
            Where the hits break the contract or the event is over the model's limits.
        UnavailableError, RequestTimeoutError, MismatchError, ServiceError
            Where the server cannot answer.
        """
        pack = Pack(events=(make_request(event),))
        return self._find(pack, self._checked_info(pack.name))[0]

    def fit(self, event: Event | NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fit a helix to each track of an event.

        Parameters
        ----------
        event
            As for :meth:`find`.
        labels
            int64 [n_hits], as :meth:`find` gives them; the tracks of any finder.

        Returns
        -------
        ndarray
            float32 [n_tracks, 8], row t of label t: pT in GeV, phi, eta, d0 and z0 in mm, charge, chi2 and degrees
            of freedom, at the point next to the beam line; NaN for a track that no helix fits.

        Raises
        ------
        UnavailableError
            Also where the server has no model ``track_fit``.
        ServiceError
            As :meth:`find`.
        """
        request = make_request(event)
        inputs = request.fit_inputs(self._checked_info(request.name), labels)

        def infer() -> Any:
            return self._client.infer(
                FIT_STEP.name, inputs, request_id=request.name, client_timeout=self.timeout
            )

        return request.fitted(self._call(request.name, infer), labels)

    @overload
    def find_many(
        self,
        events: Iterable[Event | NDArray[np.float32]],
        *,
        in_flight: int = ...,
        pack_hits: int | None = ...,
        return_refusals: Literal[False] = ...,
    ) -> Iterator[NDArray[np.int64]]: ...

    @overload
    def find_many(
        self,
        events: Iterable[Event | NDArray[np.float32]],
        *,
        in_flight: int = ...,
        pack_hits: int | None = ...,
        return_refusals: Literal[True],
    ) -> Iterator[NDArray[np.int64] | ServiceError]: ...

    def find_many(
        self,
        events: Iterable[Event | NDArray[np.float32]],
        *,
        in_flight: int = 4,
        pack_hits: int | None = None,
        return_refusals: bool = False,
    ) -> Iterator[NDArray[np.int64] | ServiceError]:
        """Find the tracks of many events, several of them on their way at once.

        Parameters
        ----------
        events
            Events or hits, as for :meth:`find`; read as they are needed.
        in_flight
            Requests on their way at once.
        pack_hits
            Send several events in one request, as long as they have no more hits than this together; None sends
            each by itself. The labels are the same. Of a pack that is refused, runs into its timeout or finds no
            memory, every event that is not at fault is sent again.
        return_refusals
            Give the error of an event that is refused (EventRefusedError), runs into its timeout
            (RequestTimeoutError) or finds no memory at any attempt (NoMemoryError) in the place of its labels and
            go on, instead of raising it and ending there. A server that answers nothing at all ends it anyway.

        Yields
        ------
        ndarray
            The labels of each event, in the events' order.

        Raises
        ------
        ServiceError
            As :meth:`find`, at the place of the event concerned.
        """
        check_counts(in_flight=in_flight, pack_hits=pack_hits)
        return self._find_many(make_packs(events, pack_hits=pack_hits), in_flight, return_refusals)

    def server_info(self) -> ServerInfo:
        """Ask the server what it serves."""
        return self._read_info(f"model {self.model}")

    def statistics(self) -> tuple[StepStatistics, ...]:
        """Ask the server for its account of the ensemble's steps, in order."""
        steps = self.server_info().steps
        response = self._call(
            "statistics", lambda: self._client.get_inference_statistics(client_timeout=self.timeout)
        )
        return step_statistics(response, steps)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, pack: Pack, info: ServerInfo) -> list[NDArray[np.int64]]:
        inputs = pack.inputs(info)

        def infer() -> Any:
            return self._client.infer(self.model, inputs, request_id=pack.name, client_timeout=self.timeout)

        return pack.labels(self._call(pack.name, infer))

    def _find_each(self, pack: Pack | Exception) -> list[Found]:
        """Find, and send what fails for its events again in halves, until each event at fault is alone."""
        if isinstance(pack, Exception):
            raise pack
        info = self._checked_info(pack.name)  # where this is not answered, no event is at fault
        try:
            return list(self._find(pack, info))
        except OF_ONE_EVENT as error:
            if isinstance(error, RequestTimeoutError):
                self._info = None  # a server that answers nothing any more shows before the next event
            if len(pack.events) == 1:
                return [error]
        return [found for half in pack.halves() for found in self._find_each(half)]

    def _find_many(
        self, packs: Iterator[Pack | Exception], in_flight: int, return_refusals: bool
    ) -> Iterator[Found]:
        pending: deque[Future[list[Found]]] = deque()
        with ThreadPoolExecutor(in_flight) as pool, contextlib.ExitStack() as stack:
            stack.callback(lambda: [future.cancel() for future in pending])
            for pack in packs:
                if len(pending) == in_flight:
                    yield from accepted(pending.popleft().result(), return_refusals)
                pending.append(pool.submit(self._find_each, pack))
            while pending:
                yield from accepted(pending.popleft().result(), return_refusals)

    def _checked_info(self, name: str) -> ServerInfo:
        info = self._info  # read once: another thread may reset it
        if info is None:
            info = self._read_info(name)
            info.require_fit()
            self._info = info
        return info

    def _read_info(self, name: str) -> ServerInfo:
        def ask(model: str) -> ServerInfo:
            metadata = self._client.get_server_metadata(client_timeout=self.timeout)
            response = self._client.get_model_config(model, client_timeout=self.timeout)
            return server_info(url=self.url, metadata=metadata, config=response.config)

        try:
            return self._call(name, lambda: ask(self.model))
        except ModelNotFoundError as error:
            missing = error
        if self.working_point is not None:
            # The model's own account, where it is loaded, tells a point that it never had from one left out.
            with contextlib.suppress(ModelNotFoundError):
                default = self._call(name, lambda: ask(self._default_model))
                default.require_point(self.working_point)
        raise missing

    def _loaded(self) -> tuple[str, ...]:
        """Ask for the models that the server has; some servers do not tell."""
        try:
            return loaded_models(self._client.get_model_repository_index(client_timeout=self.timeout))
        except InferenceServerException:
            return ()

    def _call(self, name: str, rpc: Callable[[], T]) -> T:
        for delay in retry_delays(self.retries):
            try:
                return rpc()
            except InferenceServerException as error:
                if delay is None or not is_unavailable(error):
                    raise translate(
                        error,
                        name=name,
                        url=self.url,
                        timeout=self.timeout,
                        retries=self.retries,
                        loaded=self._loaded() if is_not_found(error) else (),
                    ) from None
            self._info = None  # whatever answers next may serve another model
            time.sleep(delay)
        raise AssertionError("the last delay is None")
