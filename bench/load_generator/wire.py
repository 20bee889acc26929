"""Requests as bytes, written once and sent again and again, to any server that speaks KServe v2 over gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tritrack.service.access import PLAIN
from tritrack.service.errors import EventRefusedError, NoMemoryError, RequestTimeoutError, UnavailableError
from tritrack.service.protocol import CHANNEL_ARGUMENTS, step_statistics, translate
from tritrack.stages.contract import HITS, TRACK_LABEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tritrack.service.access import Access
    from tritrack.service.protocol import StepStatistics

ErrorKind = Literal["unavailable", "timeout", "refused", "other"]

INFER = f"/{service_pb2.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/ModelInfer"

ASK_TIMEOUT = 10.0
"""Seconds that a question about the server may take; a server at its limit answers them late."""

_KINDS: dict[type[Exception], ErrorKind] = {
    UnavailableError: "unavailable",
    NoMemoryError: "unavailable",
    RequestTimeoutError: "timeout",
    EventRefusedError: "refused",
}


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """One event, ready to be sent.

    Attributes
    ----------
    body
        The request as it goes over the wire.
    n_hits
        Hits of the event.
    """

    body: bytes
    n_hits: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request without a usable answer.

    Attributes
    ----------
    kind
        The error's class (`tritrack.service.errors`): not available, no answer in time, refused, anything else.
    message
        The client's sentence for it.
    """

    kind: ErrorKind
    message: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model behind the one that is asked, as the server's configuration has it.

    Attributes
    ----------
    name
        Name of the model.
    instances
        Its instances.
    threads
        Threads of each; None where the configuration does not say.
    """

    name: str
    instances: int
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server says of the model that is asked.

    Attributes
    ----------
    server
        Name and version of the server; None where it does not say.
    card_name, card_sha256, working_point
        Of tritrack's models; None for others.
    steps
        An ensemble's steps, in order, or the model itself; empty where the server does not show configurations.
    """

    server: str | None
    card_name: str | None
    card_sha256: str | None
    working_point: str | None
    steps: tuple[Step, ...]


def encode(model: str, hits: NDArray[np.float32]) -> WireRequest:
    """Write the request for one event, float32 [n_hits, n_columns], without any check: a server shall refuse it."""
    message = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name=HITS.name, datatype=np_to_triton_dtype(HITS.dtype), shape=hits.shape
            )
        ],
        raw_input_contents=[hits.astype(HITS.dtype, order="C", copy=False).tobytes()],
    )
    return WireRequest(body=message.SerializeToString(), n_hits=len(hits))


class Connection:
    """One client's connection; create and use it inside one running loop.

    Parameters
    ----------
    url
        HOST:PORT of the gRPC service.
    timeout
        Seconds that a request may take.
    access
        TLS and headers.
    """

    def __init__(self, url: str, *, timeout: float, access: Access = PLAIN) -> None:
        self.url = url
        self.timeout = timeout
        # Clients are programs of their own, so none shares its connection with another.
        options = [*CHANNEL_ARGUMENTS, ("grpc.use_local_subchannel_pool", 1)]
        credentials = access.credentials()
        self._channel = (
            grpc.aio.insecure_channel(url, options=options)
            if credentials is None
            else grpc.aio.secure_channel(url, credentials, options=options)
        )
        self._metadata = access.metadata
        self._infer = self._channel.unary_unary(INFER)  # without serializers: bytes in, bytes out
        self._ask = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def send(self, request: WireRequest) -> Failure | None:
        """Send an event and wait for the answer; None where it holds a label for each hit. Nothing is repeated."""
        try:
            answer = await self._infer(request.body, timeout=self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            return self._failure(error)
        shapes = [
            list(tensor.shape)
            for tensor in service_pb2.ModelInferResponse.FromString(answer).outputs
            if tensor.name == TRACK_LABEL.name
        ]
        if shapes != [[request.n_hits]]:
            return Failure(
                kind="other",
                message=f"the answer has {TRACK_LABEL.name} of shape {shapes}, [{request.n_hits}] wanted",
            )
        return None

    async def served(self, model: str) -> Served:
        """Ask what the server serves; what it does not say, or a server that is not there, is left out."""
        server = await self._optional(self._ask.ServerMetadata, service_pb2.ServerMetadataRequest())
        config = await self._config(model)
        if config is None:
            return Served(
                server=None if server is None else f"{server.name} {server.version}",
                card_name=None,
                card_sha256=None,
                working_point=None,
                steps=(),
            )
        values = {key: parameter.string_value for key, parameter in config.parameters.items()}
        names = [step.model_name for step in config.ensemble_scheduling.step] or [model]
        return Served(
            server=None if server is None else f"{server.name} {server.version}",
            card_name=values.get("card_name"),
            card_sha256=values.get("card_sha256"),
            working_point=values.get("working_point"),
            steps=tuple([_step(found) for name in names if (found := await self._config(name)) is not None]),
        )

    async def statistics(self, steps: tuple[Step, ...]) -> tuple[StepStatistics, ...]:
        """Ask for the server's account of the steps since its start; empty where it keeps none."""
        response = await self._optional(self._ask.ModelStatistics, service_pb2.ModelStatisticsRequest())
        return () if response is None else step_statistics(response, tuple(step.name for step in steps))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _config(self, model: str) -> Any:
        response = await self._optional(self._ask.ModelConfig, service_pb2.ModelConfigRequest(name=model))
        return None if response is None else response.config

    async def _optional(self, call: Any, message: Any) -> Any:
        """Return the answer to a question that only some servers know; None of the others."""
        try:
            return await call(message, timeout=ASK_TIMEOUT, metadata=self._metadata)
        except grpc.RpcError:
            # Not implemented, no such model, or no server: the requests themselves tell these apart.
            return None

    def _failure(self, error: Any) -> Failure:
        told = translate(
            InferenceServerException(msg=error.details(), status=str(error.code())),
            name="the event",
            url=self.url,
            timeout=self.timeout,
            retries=0,
        )
        return Failure(kind=_KINDS.get(type(told), "other"), message=str(told))


def _step(config: Any) -> Step:
    values = {key: parameter.string_value for key, parameter in config.parameters.items()}
    threads = values.get("threads", values.get("intra_op_thread_count", ""))
    # Without a group Triton runs one instance.
    instances = sum(group.count for group in config.instance_group) or 1
    return Step(name=config.name, instances=instances, threads=int(threads) if threads.isdigit() else None)
