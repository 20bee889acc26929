"""The ways of an event to a server and of its labels back: gRPC, HTTP, and shared memory of the host or of a GPU."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from tritrack.bench.serving.regions import DeviceRegion, HostRegion
from tritrack.service.protocol import Pack, make_request
from tritrack.stages.contract import HITS, TRACK_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tritrack.bench.serving.regions import Region
    from tritrack.events.event import Event
    from tritrack.service.client import TrackFinder
    from tritrack.service.protocol import ServerInfo

    Labels = NDArray[np.int64]

GRPC, HTTP, SYSTEM, CUDA = "grpc", "http", "system shared memory", "CUDA shared memory"


class Way(Protocol):
    """A way of an event to one model."""

    @property
    def name(self) -> str:
        """One of the four."""

    def find(self, event: Event) -> Labels:
        """Send an event and wait for its labels (raises what the client raises)."""

    def client_seconds(self, event: Event, labels: Labels) -> tuple[float, float]:
        """Do again what the client does of itself in `find`, and nothing else.

        Returns
        -------
        encode, decode
            Seconds to check the event and make a request of it, up to the bytes that are sent; and to read the
            labels out of the bytes of an answer.
        """


class ByGrpc:
    """The client of `tritrack.service`.

    Parameters
    ----------
    finder
        The client, of the model.
    info
        The model.
    """

    name = GRPC

    def __init__(self, finder: TrackFinder, *, info: ServerInfo) -> None:
        self._finder = finder
        self._info = info

    def find(self, event: Event) -> Labels:
        """Send an event and wait for its labels."""
        return self._finder.find(event)

    def client_seconds(self, event: Event, labels: Labels) -> tuple[float, float]:
        """Time the messages of a request and of an answer with these labels."""
        start = perf_counter()
        pack = Pack(events=(make_request(event),))
        pack.events[0].check(self._info)
        _grpc_request(self._info.model, event.hits)
        encoded = perf_counter() - start
        message = service_pb2.ModelInferResponse(raw_output_contents=[labels.tobytes()])
        message.outputs.add(name=TRACK_LABEL.name, datatype=_datatype(labels), shape=labels.shape)
        answer = message.SerializeToString()
        start = perf_counter()
        pack.labels(triton_grpc.InferResult(service_pb2.ModelInferResponse.FromString(answer)))
        return encoded, perf_counter() - start


def _grpc_request(model: str, hits: NDArray[np.float32]) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[hits.tobytes()])
    message.inputs.add(name=HITS.name, datatype=_datatype(hits), shape=hits.shape)
    request: bytes = message.SerializeToString()
    return request


class ByHttp:
    """Triton's own client of HTTP, with tensors as bytes beside the JSON.

    Parameters
    ----------
    url
        HOST:PORT of HTTP.
    info
        The model.
    timeout
        Seconds that a request may take.
    """

    name = HTTP

    def __init__(self, url: str, *, info: ServerInfo, timeout: float) -> None:
        self._info = info
        self._client = triton_http.InferenceServerClient(url, network_timeout=timeout)

    def find(self, event: Event) -> Labels:
        """Send an event and wait for its labels."""
        return _http_labels(self._client.infer(self._info.model, self._inputs(event)))

    def client_seconds(self, event: Event, labels: Labels) -> tuple[float, float]:
        """Time the body of a request and of an answer with these labels."""
        client = triton_http.InferenceServerClient
        start = perf_counter()
        client.generate_request_body(self._inputs(event))
        encoded = perf_counter() - start
        output: dict[str, Any] = {
            "name": TRACK_LABEL.name,
            "datatype": _datatype(labels),
            "shape": labels.shape,
        }
        output["parameters"] = {"binary_data_size": labels.nbytes}
        head = json.dumps({"model_name": self._info.model, "outputs": [output]}).encode()
        body = head + labels.tobytes()
        start = perf_counter()
        _http_labels(client.parse_response_body(body, header_length=len(head)))
        return encoded, perf_counter() - start

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _inputs(self, event: Event) -> list[Any]:
        make_request(event).check(self._info)
        tensor = triton_http.InferInput(HITS.name, list(event.hits.shape), _datatype(event.hits))
        return [tensor.set_data_from_numpy(event.hits, binary_data=True)]


def _http_labels(result: Any) -> Labels:
    return np.array(result.as_numpy(TRACK_LABEL.name))


class ByMemory:
    """Hits and labels in memory that client and server share, registered once; gRPC says where they lie.

    Parameters
    ----------
    url
        HOST:PORT of gRPC.
    info
        The model.
    name
        `SYSTEM`, or `CUDA` for a GPU's.
    max_hits
        Hits that the regions hold.
    timeout
        Seconds that a request may take.

    Raises
    ------
    NoRegionError
        Where there is no such memory here.
    """

    def __init__(self, url: str, *, info: ServerInfo, name: str, max_hits: int, timeout: float) -> None:
        self.name = name
        self._info = info
        self._timeout = timeout
        regions: dict[str, Callable[..., Region]] = {SYSTEM: HostRegion, CUDA: DeviceRegion}
        region = regions[name]
        with ExitStack() as stack:
            self._client = stack.enter_context(closing(triton_grpc.InferenceServerClient(url)))
            sizes = (max_hits * info.n_columns * HITS.dtype.itemsize, max_hits * TRACK_LABEL.dtype.itemsize)
            self._sent, self._received = (
                stack.enter_context(closing(region(self._client, size=max(size, 1)))) for size in sizes
            )
            self._stack = stack.pop_all()

    def find(self, event: Event) -> Labels:
        """Write the hits to the one region, and read the labels from the other when the answer is there."""
        inputs, outputs = self._request(event)
        self._client.infer(self._info.model, inputs, outputs=outputs, client_timeout=self._timeout)
        return self._labels(event)

    def client_seconds(self, event: Event, labels: Labels) -> tuple[float, float]:
        """Time what is written to the one region, and read from the other, which holds the last answer."""
        start = perf_counter()
        self._request(event)
        encoded = perf_counter() - start
        start = perf_counter()
        self._labels(event)
        return encoded, perf_counter() - start

    def close(self) -> None:
        """Take the regions from the server and remove them."""
        self._stack.close()

    def _request(self, event: Event) -> tuple[list[Any], list[Any]]:
        make_request(event).check(self._info)
        self._sent.write(event.hits)
        tensor = triton_grpc.InferInput(HITS.name, list(event.hits.shape), _datatype(event.hits))
        tensor.set_shared_memory(self._sent.name, event.hits.nbytes)
        output = triton_grpc.InferRequestedOutput(TRACK_LABEL.name)
        output.set_shared_memory(self._received.name, event.n_hits * TRACK_LABEL.dtype.itemsize)
        return [tensor], [output]

    def _labels(self, event: Event) -> Labels:
        labels: Labels = self._received.read((event.n_hits,), TRACK_LABEL.dtype)
        return labels


def _datatype(array: NDArray[Any]) -> str:
    """Return Triton's name of an array's type."""
    name: str = np_to_triton_dtype(array.dtype)
    return name
