"""What is installed here, and what a server serves: for ``tritrack info`` and for bug reports."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tritrack.service.access import PLAIN
from tritrack.service.client import TrackFinder
from tritrack.service.errors import ModelNotFoundError, ServerStartError
from tritrack.service.installation import find_installation
from tritrack.stages.card import CARD_FILE, CardError, engine_file, read_card
from tritrack.stages.contract import CONTRACT_VERSION, STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from tritrack.service.access import Access

LIBRARIES = (
    "numpy", "pyarrow", "tritonclient", "onnxruntime", "faiss-cpu", "numba", "torch", "nvidia-pytriton",
    "pyacts", "pythia8mc",
)  # fmt: skip


def describe(engines: Path) -> dict[str, Any]:
    """Return versions, device, server and engines of this installation, ready for JSON."""
    return {
        "tritrack": version("tritrack"),
        "contract version": CONTRACT_VERSION,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": _device(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "tritonserver": _server(),
        "engines": _engines(engines),
    }


def describe_server(url: str, *, model: str, access: Access = PLAIN) -> dict[str, Any]:
    """Return what a server's model serves and whether this client fits it (raises ServiceError)."""
    with TrackFinder(url, model=model, access=access) as finder:
        info = finder.server_info()
    points: dict[str, dict[str, Any]] = {}
    for name in info.working_points:
        with TrackFinder(url, model=info.default_model, working_point=name, access=access) as finder:
            try:
                point = finder.server_info()
            except ModelNotFoundError:  # the server was told which models to load
                points[name] = {"model": f"{finder.model} is not loaded"}
            else:
                points[name] = {"model": point.model, "metrics": point.metrics}
    return {
        "server": info.url,
        "server version": info.server_version,
        "server model": info.model,
        "server steps": ", ".join(info.steps),
        "server answers with": ", ".join(info.outputs),
        "server default working point": info.working_point,
        "server working points": points,
        "server contract version": info.contract_version,
        "server card": info.card_name,
        "server card sha256": info.card_sha256,
        "server limits": {
            name: limit
            for name in ("max_hits", "max_pairs", "max_edges")
            if (limit := getattr(info, name)) is not None
        },
        "this client fits": info.fits,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        return "cpu"
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


def _server() -> str:
    try:
        installation = find_installation()
    except ServerStartError as error:
        return str(error)
    return f"{installation.binary} (from {installation.source})"


def _engines(folder: Path) -> dict[str, Any]:
    if not (folder / CARD_FILE).exists():
        return {str(folder): "none there"}
    try:
        card = read_card(folder)
    except CardError as error:
        return {str(folder): str(error)}
    files = [file for spec in STAGES if (folder / (file := engine_file(spec.name))).exists()]
    return {
        "folder": str(folder),
        "card": card.name,
        "sha256": card.hash,
        "files": " ".join(files),
        "columns": " ".join(card.columns),
        **asdict(card.limits),
        "default": card.default,
        "working points": {name: asdict(card.point(name)) for name in card.points},
    }
