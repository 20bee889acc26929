"""An ONNX file -> a TensorRT engine. Importing this module imports TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorrt as trt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tritrack.stages.plan_file import Sizes

# Every local variable that holds an object of TensorRT's is annotated with its class: a test looks up each name
# that this module and tritrack.stages.plan_engine use in the real bindings, of more than one major version.


class PlanError(RuntimeError):
    """A network that TensorRT does not build; the message has what TensorRT says."""


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's warnings and errors, which it writes to standard error otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a line; TensorRT calls this, also out of its own threads."""
        if severity in (
            trt.ILogger.Severity.INTERNAL_ERROR,
            trt.ILogger.Severity.ERROR,
            trt.ILogger.Severity.WARNING,
        ):
            self.lines.append(msg)

    def last(self) -> str:
        """Return the last line."""
        return self.lines[-1] if self.lines else "TensorRT gives no reason"


def build_plan(onnx: Path, *, profile: Mapping[str, Sizes], timing: Path) -> bytes:
    """Build the engine of a network on this machine's GPU.

    The network is strongly typed: each layer computes in the type that the ONNX file gives it, which is the one
    way that TensorRT 11 has left and one that 10 has too. TF32 is off: it would round what is float32 in the
    file, hit coordinates in mm, to three digits.

    Parameters
    ----------
    onnx
        The file.
    profile
        By input, the shapes that the engine must take, and the one to be fastest at.
    timing
        File of the timing cache: TensorRT's measurements, read if it is there and written anew.

    Returns
    -------
    bytes
        The engine.

    Raises
    ------
    PlanError
        Where TensorRT does not read the file or does not build it.
    """
    log = Log()
    trt.init_libnvinfer_plugins(None, "")  # the sum by index is one of them
    builder: trt.Builder = trt.Builder(log)
    network: trt.INetworkDefinition = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser: trt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse(onnx.read_bytes()):
        error: trt.ParserError = parser.get_error(0)
        raise PlanError(
            f"{onnx}: TensorRT {trt.__version__} cannot read {error.node_name() or 'it'}: {error.desc()}"
        )
    shapes: trt.IOptimizationProfile = builder.create_optimization_profile()
    for name, sizes in profile.items():
        shapes.set_shape(name, sizes.min, sizes.opt, sizes.max)
    config: trt.IBuilderConfig = builder.create_builder_config()
    if config.add_optimization_profile(shapes) < 0:
        raise PlanError(f"{onnx}: TensorRT {trt.__version__} refuses the profile: {log.last()}")
    config.clear_flag(trt.BuilderFlag.TF32)
    cache: trt.ITimingCache = config.create_timing_cache(timing.read_bytes() if timing.exists() else b"")
    if not config.set_timing_cache(cache, False):  # another GPU's or release's
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(f"{onnx}: TensorRT {trt.__version__} cannot build it: {log.last()}")
    timing.write_bytes(bytes(cache.serialize()))
    return bytes(plan)
