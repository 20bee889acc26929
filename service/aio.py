"""The client for asyncio programs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tritonclient.grpc.aio import InferenceServerClient
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
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.events.event import Event
    from tritrack.service.errors import ServiceError
    from tritrack.stages.card import WorkingPointName

    Found = NDArray[np.int64] | ServiceError

T = TypeVar("T")


class AsyncTrackFinder:
    """The asyncio twin of :class:`tritrack.service.client.TrackFinder`; create it inside a running loop.

    Parameters
    ----------
    url, working_point, model, timeout, retries, access
        As there.
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

    async def find(self, event: Event | NDArray[np.float32]) -> NDArray[np.int64]:
        """Find the tracks of one event; see :meth:`TrackFinder.find`."""
        pack = Pack(events=(make_request(event),))
        return (await self._find(pack, await self._checked_info(pack.name)))[0]

    async def fit(self, event: Event | NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fit a helix to each track of an event; see :meth:`TrackFinder.fit`."""
        request = make_request(event)
        inputs = request.fit_inputs(await self._checked_info(request.name), labels)

        async def infer() -> Any:
            return await self._client.infer(
                FIT_STEP.name, inputs, request_id=request.name, client_timeout=self.timeout
            )

        return request.fitted(await self._call(request.name, infer), labels)

    @overload
    def find_many(
        self,
        events: Iterable[Event | NDArray[np.float32]],
        *,
        in_flight: int = ...,
        pack_hits: int | None = ...,
        return_refusals: Literal[False] = ...,
    ) -> AsyncIterator[NDArray[np.int64]]: ...

    @overload
    def find_many(
        self,
        events: Iterable[Event | NDArray[np.float32]],
        *,
        in_flight: int = ...,
        pack_hits: int | None = ...,
        return_refusals: Literal[True],
    ) -> AsyncIterator[NDArray[np.int64] | ServiceError]: ...

    async def find_many(
        self,
        events: Iterable[Event | NDArray[np.float32]],
        *,
        in_flight: int = 4,
        pack_hits: int | None = None,
        return_refusals: bool = False,
    ) -> AsyncIterator[NDArray[np.int64] | ServiceError]:
        """Find the tracks of many events; see :meth:`TrackFinder.find_many`."""
        check_counts(in_flight=in_flight, pack_hits=pack_hits)
        pending: deque[asyncio.Task[list[Found]]] = deque()
        try:
            for pack in make_packs(events, pack_hits=pack_hits):
                if len(pending) == in_flight:
                    for found in accepted(await pending.popleft(), return_refusals):
                        yield found
                pending.append(asyncio.create_task(self._find_each(pack)))
            while pending:
                for found in accepted(await pending.popleft(), return_refusals):
                    yield found
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def server_info(self) -> ServerInfo:
        """Ask the server what it serves."""
        return await self._read_info(f"model {self.model}")

    async def statistics(self) -> tuple[StepStatistics, ...]:
        """Ask the server for its account of the ensemble's steps, in order."""
        steps = (await self.server_info()).steps
        response = await self._call(
            "statistics", lambda: self._client.get_inference_statistics(client_timeout=self.timeout)
        )
        return step_statistics(response, steps)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _find(self, pack: Pack, info: ServerInfo) -> list[NDArray[np.int64]]:
        inputs = pack.inputs(info)

        async def infer() -> Any:
            return await self._client.infer(
                self.model, inputs, request_id=pack.name, client_timeout=self.timeout
            )

        return pack.labels(await self._call(pack.name, infer))

    async def _find_each(self, pack: Pack | Exception) -> list[Found]:
        if isinstance(pack, Exception):
            raise pack
        info = await self._checked_info(pack.name)  # where this is not answered, no event is at fault
        try:
            return list(await self._find(pack, info))
        except OF_ONE_EVENT as error:
            if isinstance(error, RequestTimeoutError):
                self._info = None  # a server that answers nothing any more shows before the next event
            if len(pack.events) == 1:
                return [error]
        return [found for half in pack.halves() for found in await self._find_each(half)]

    async def _checked_info(self, name: str) -> ServerInfo:
        info = self._info  # read once: another task may reset it
        if info is None:
            info = await self._read_info(name)
            info.require_fit()
            self._info = info
        return info

    async def _read_info(self, name: str) -> ServerInfo:
        async def ask(model: str) -> ServerInfo:
            metadata = await self._client.get_server_metadata(client_timeout=self.timeout)
            response = await self._client.get_model_config(model, client_timeout=self.timeout)
            return server_info(url=self.url, metadata=metadata, config=response.config)

        try:
            return await self._call(name, lambda: ask(self.model))
        except ModelNotFoundError as error:
            missing = error
        if self.working_point is not None:
            # The model's own account, where it is loaded, tells a point that it never had from one left out.
            with contextlib.suppress(ModelNotFoundError):
                default = await self._call(name, lambda: ask(self._default_model))
                default.require_point(self.working_point)
        raise missing

    async def _loaded(self) -> tuple[str, ...]:
        """Ask for the models that the server has; some servers do not tell."""
        try:
            return loaded_models(await self._client.get_model_repository_index(client_timeout=self.timeout))
        except InferenceServerException:
            return ()

    async def _call(self, name: str, rpc: Callable[[], Awaitable[T]]) -> T:
        for delay in retry_delays(self.retries):
            try:
                return await rpc()
            except InferenceServerException as error:
                if delay is None or not is_unavailable(error):
                    raise translate(
                        error,
                        name=name,
                        url=self.url,
                        timeout=self.timeout,
                        retries=self.retries,
                        loaded=await self._loaded() if is_not_found(error) else (),
                    ) from None
            self._info = None  # whatever answers next may serve another model
            await asyncio.sleep(delay)
        raise AssertionError("the last delay is None")
