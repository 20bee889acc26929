"""How fast a machine moves memory and multiplies, measured with the threads that a measurement uses.

Every time is of two clocks, float64 [2] as `tritrack.bench.candidates.now` counts them: wall, and processor.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from tritrack.bench.candidates import now
from tritrack.bench.threads import require_threads
from tritrack.export.network import IR_VERSION, OPSET

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tritrack.stages.card import Networks

Device = Literal["cpu", "cuda"]

ARRAY_CACHES = 4
"""Each of the three arrays of the triad is so many times the last cache: nothing of it stays there."""

SQUARE = 2048
"""Rows and columns of the large square product."""

ROWS = 1 << 16
"""Rows of the products in the networks' shapes."""

_REPEATS = 3  # of which the one with the least wall time counts, by both clocks
_USUAL_CACHE = 64 << 20


class Probes:
    """Measures a device: memory by a triad, a = b + s c, as in STREAM (J. D. McCalpin, 1995), and float32 products.

    Parameters
    ----------
    device
        The device.
    networks
        Sizes of the networks, which are those of the products.
    threads
        Threads on the host; torch must be set to them (`tritrack.bench.threads`).
    cache_bytes
        The last cache; None for that of this device.
    """

    def __init__(
        self, *, device: Device, networks: Networks, threads: int, cache_bytes: int | None = None
    ) -> None:
        require_threads(threads)
        self._device = device
        n = ARRAY_CACHES * (cache_bytes or last_cache(device)) // 4
        self._arrays = [torch.ones(n, device=device) for _ in range(3)]
        widths = {networks.embedding_width, networks.gnn_width, *networks.filter_widths}
        shapes = [(ROWS, width, width) for width in sorted(widths)]
        self._products: dict[str, tuple[float, Callable[[], object]]] = {}
        for m, k, n in (*shapes, (SQUARE, SQUARE, SQUARE)):
            name, operations = f"[{m}, {k}] x [{k}, {n}]", 2.0 * m * k * n
            a, b = torch.ones(m, k, device=device), torch.ones(k, n, device=device)
            out = torch.empty(m, n, device=device)
            self._products[f"{name}, torch"] = operations, partial(torch.mm, a, b, out=out)
            if device == "cpu":
                product = _product_in_onnx(b.numpy(), threads=threads)
                self._products[f"{name}, onnxruntime"] = operations, partial(product, a.numpy())

    def bandwidth(self) -> NDArray[np.float64]:
        """Return the bytes a second of a triad, by either clock: two arrays read, one written."""
        a, b, c = self._arrays
        return 3 * a.nbytes / self._seconds(lambda: torch.add(b, c, alpha=3.0, out=a))

    def rates(self) -> dict[str, NDArray[np.float64]]:
        """Return the operations a second of each product, by either clock: two for each of its terms."""
        return {
            name: operations / self._seconds(product)
            for name, (operations, product) in self._products.items()
        }

    def _seconds(self, function: Callable[[], object]) -> NDArray[np.float64]:
        seconds = [timed(function, device=self._device) for _ in range(_REPEATS + 1)]
        return min(seconds, key=lambda of_repeat: of_repeat[0])


def _product_in_onnx(right: NDArray[np.float32], *, threads: int) -> Callable[[NDArray[np.float32]], object]:
    """Return the product with a constant in ONNX Runtime: its kernels are not torch's, and either can be faster."""
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", float32, ["m", right.shape[0]])],
        [helper.make_tensor_value_info("c", float32, ["m", right.shape[1]])],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return lambda left: session.run(None, {"a": left})


def timed(function: Callable[[], object], *, device: Device) -> NDArray[np.float64]:
    """Return the time of a call, by either clock, until the device is done."""
    start = now()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def last_cache(device: Device) -> int:
    """Return the bytes of the last cache, or a usual size where the system does not tell."""
    if device == "cuda":
        return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or _USUAL_CACHE
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=_USUAL_CACHE)
