"""What NVIDIA's server images hold, and whether exported engines run in one.

An image's ONNX Runtime reads ONNX files up to an IR version and an opset. A TensorRT engine runs in the release that
built it alone, to the build number (triton-inference-server/server, issue 5975).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from tritrack.stages.plan_file import read_facts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import onnx

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Names of ONNX's own operators; other domains have opsets of their own."""


class ImageError(ValueError):
    """An engine that does not run in a server image, or an image that is not known."""


@dataclass(frozen=True, kw_only=True)
class ServerImage:
    """One release of ``nvcr.io/nvidia/tritonserver:TAG-py3``.

    Attributes
    ----------
    tag
        YY.MM.
    triton, tensorrt, onnxruntime, cuda, python
        Versions of what is in it; of Python the minor one.
    tensorrt_package
        Version of the Python package ``tensorrt-cu12`` with this TensorRT; the image has the libraries alone.
    ir_version, opset
        Of ONNX files: the latest that its ONNX Runtime reads.
    source
        Where the versions are from, beside ONNX Runtime's own refusals, which gave ``ir_version`` and ``opset``.
    """

    tag: str
    triton: str
    tensorrt: str
    tensorrt_package: str
    onnxruntime: str
    cuda: str
    python: str
    ir_version: int
    opset: int
    source: str


_NOTES = "`docs/introduction/release_notes.md` and `build.py`, branch r{} of triton-inference-server/server"

IMAGES = {
    image.tag: image
    for image in (
        ServerImage(
            tag="24.12",
            triton="2.53.0",
            tensorrt="10.7.0.23",
            tensorrt_package="10.7.0",
            # The notes say 1.19.2, build.py 1.20.1; both read the same files.
            onnxruntime="1.19.2",
            cuda="12.6.3",
            python="3.12",
            ir_version=10,
            opset=21,
            source=_NOTES.format("24.12"),
        ),
        ServerImage(
            tag="25.01",
            triton="2.54.0",
            tensorrt="10.8.0.43",
            tensorrt_package="10.8.0.43",
            onnxruntime="1.20.1",
            cuda="12.8.0",
            python="3.12",
            ir_version=10,
            opset=21,
            source=_NOTES.format("25.01"),
        ),
    )
}
"""The images whose contents are known for certain; earlier ones have Python 3.10."""

PINNED = "25.01"
"""The image that ``deploy/Dockerfile`` starts from."""


def find_image(tag: str) -> ServerImage:
    """Return an image by its tag (raises ImageError)."""
    if tag not in IMAGES:
        raise ImageError(f"image {tag}: not known, {' and '.join(IMAGES)} are (docs/containers.md)")
    return IMAGES[tag]


def check_engines(engines: Iterable[Path], *, image: ServerImage) -> None:
    """Check that an image's own backends run the engines.

    Parameters
    ----------
    engines
        ONNX files, and TensorRT engines with their facts beside them.
    image
        The image.

    Raises
    ------
    ImageError
        Names the file, what it is, and what the image takes.
    CardError
        Where nothing says what a TensorRT engine was built for.
    """
    for path in engines:
        if path.suffix == ".onnx":
            _check_onnx(path, image)
        else:
            _check_plan(path, image)


def _check_onnx(path: Path, image: ServerImage) -> None:
    import onnx  # here: a repository for the wheel's server does without
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ImageError(f"{path}: no ONNX file") from None
    reader = f"the ONNX Runtime {image.onnxruntime} of image {image.tag} reads up to"
    if model.ir_version > image.ir_version:
        raise ImageError(f"{path}: of IR version {model.ir_version}, {reader} {image.ir_version}")
    if (opset := _opset(model)) > image.opset:
        raise ImageError(f"{path}: of opset {opset}, {reader} {image.opset}")


def _opset(model: onnx.ModelProto) -> int:
    """Return the latest opset of ONNX's own operators that a file, or a function in it, uses."""
    imports = chain(model.opset_import, *(function.opset_import for function in model.functions))
    return max((opset.version for opset in imports if opset.domain in DEFAULT_DOMAINS), default=0)


def _check_plan(path: Path, image: ServerImage) -> None:
    found = read_facts(path).tensorrt
    # Some releases of the Python package leave out the build number.
    if not all(a == b for a, b in zip(found.split("."), image.tensorrt.split("."), strict=False)):
        raise ImageError(
            f"{path}: built by TensorRT {found}, image {image.tag} has {image.tensorrt}: build it in this image "
            "(make export-container)"
        )
