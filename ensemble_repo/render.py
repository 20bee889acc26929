"""Engines -> a Triton model repository."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from tritrack.ensemble_repo.config import config_text, model_configs
from tritrack.ensemble_repo.images import PINNED, check_engines, find_image
from tritrack.ensemble_repo.plan import (
    ADAPTER_FILE,
    BACKEND_FILE,
    CONFIG_FILE,
    NATIVE,
    ONE_EACH,
    RULE_FINDER,
    plan_fused,
    plan_rules,
    plan_steps,
)
from tritrack.rules.windows import RULES_FILE, read_rules
from tritrack.stages.card import ENSEMBLE, read_card
from tritrack.stages.plan_file import plan_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tritrack.ensemble_repo.plan import DeviceKind, EngineKind, Instances, ServerKind, Step

VERSION = "1"
"""Triton's version of every model: a repository holds one set of weights."""


class RepositoryError(ValueError):
    """A model repository that cannot be written; the message says where and why."""


def render_repository(
    *,
    engines: Path | None,
    out: Path,
    server: ServerKind,
    device: DeviceKind,
    threads: int,
    fused: bool = False,
    rules: Path | None = None,
    image: str = PINNED,
    gpu_memory: int | None = None,
    instances: Instances = ONE_EACH,
) -> None:
    """Write the model repository that serves a folder of engines, of rules, or both.

    Parameters
    ----------
    engines
        Folder with ``card.json`` and the engine files; None for a repository of rules alone.
    out
        Folder to write; an earlier repository there is replaced, anything else is left alone.
    server
        "embedded": every step runs in the Python backend. "container": the networks run in Triton's own
        backends.
    device
        "cpu" or "gpu".
    threads
        Threads of each step, at least 1.
    fused
        Write the models of the ``tritrack`` backend, too: the chain in one process.
    rules
        Folder with ``rules.json``: write the rule-based finder and the fit, too.
    image
        For a container: tag of NVIDIA's image that will load it.
    gpu_memory
        For a container on a GPU: MB that each network's ONNX Runtime may take there; None for no limit.
    instances
        Instances of each step, each with its ``threads``.

    Raises
    ------
    CardError
        Where ``engines`` holds no usable card.
    RulesError
        Where ``rules`` holds no usable rules.
    ImageError
        Where the image is not known, or its backends cannot run an engine.
    RepositoryError
        Where engines are missing, TensorRT's shall run on a CPU or fused in a container, a container's GPU shall run
        ONNX files made for a CPU, ``out`` holds something else or cannot be replaced, ``threads`` is no count, or
        instances are those of a step that is not there.
    """
    if threads < 1:
        raise RepositoryError(f"threads: {threads} given, at least 1 wanted")
    if engines is None and (rules is None or fused):
        raise RepositoryError("engines: none given, and all but the models of the rules want them")
    card = None if engines is None else read_card(engines)
    engine: EngineKind = "onnx" if engines is None or not list(engines.glob(plan_file("*"))) else "tensorrt"
    if engines is not None and engine == "tensorrt":
        _check_plans(engines, server=server, device=device, fused=fused)
    steps = [
        *(() if card is None else plan_steps(card, server, engine)),
        *(plan_fused(card, engine) if card is not None and fused else ()),
        *(plan_rules() if rules is not None else ()),
    ]
    _check_instances(instances, steps)
    if server == "container" and engines is not None:
        native = [engines / step.files[0] for step in steps if step.backend in NATIVE]
        native = [path for path in native if path.is_file()]
        check_engines(native, image=find_image(image))
        if device == "gpu" and engine == "onnx":
            _refuse_loops(native)
    out = out.resolve()
    if out.exists() and not (out.is_dir() and (_is_repository(out) or not any(out.iterdir()))):
        raise RepositoryError(f"{out}: holds something that is no model repository; name another folder")
    configs = model_configs(
        card=card,
        server=server,
        device=device,
        threads=threads,
        engine=engine,
        fused=fused,
        rules=None if rules is None else read_rules(rules),
        gpu_memory=gpu_memory,
        instances=instances,
    )
    sources = {
        (step.name, file): BACKEND_FILE if file == ADAPTER_FILE else folder / file
        for step in steps
        for file in step.files
        if (folder := rules if file == RULES_FILE else engines) is not None
    }
    for (name, _), source in sources.items():
        if not source.is_file():
            raise RepositoryError(f"{source}: missing, the step {name} needs it")
    _write(out, configs, sources)


def _write(out: Path, configs: Mapping[str, Any], sources: Mapping[tuple[str, str], Path]) -> None:
    """Write configurations by model, and the files of each model, beside the target: a failure leaves no half of it."""
    fresh = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        for name, config in configs.items():
            (fresh / name / VERSION).mkdir(parents=True)
            (fresh / name / CONFIG_FILE).write_text(config_text(config))
        for (name, file), source in sources.items():
            shutil.copyfile(source, fresh / name / VERSION / file)
        _replace(out, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(out: Path, fresh: Path) -> None:
    """Put a folder in the place of another, which is deleted last: where that fails, it is there as before."""
    aside = fresh.with_suffix(".old")
    try:
        try:
            if out.exists():
                out.rename(aside)
            fresh.rename(out)
        finally:
            if aside.exists() and not out.exists():
                aside.rename(out)
    except OSError as error:
        kept = "" if out.exists() or not aside.exists() else f"; what was there is in {aside}"
        raise RepositoryError(f"{out}: cannot be put in place: {error.strerror}{kept}") from None
    shutil.rmtree(aside, ignore_errors=True)


def _check_instances(instances: Instances, steps: Sequence[Step]) -> None:
    """Refuse instances of a step that is not there."""
    there = dict.fromkeys(step.computes for step in steps)
    if absent := [name for name in instances.of if name not in there]:
        raise RepositoryError(f"instances: no step {absent[0]} here, there are {', '.join(there)}")


def _check_plans(engines: Path, *, server: ServerKind, device: DeviceKind, fused: bool) -> None:
    """Refuse TensorRT's engines where nothing runs them."""
    if device != "gpu":
        raise RepositoryError(f"{engines}: holds TensorRT's engines, which run on a GPU only: --device gpu")
    if server == "container" and fused:
        raise RepositoryError(
            f"{engines}: holds TensorRT's engines, and the fused models run them by TensorRT's Python package, which "
            "a container's image lacks: leave out --fused, or give ONNX engines"
        )


def _refuse_loops(engines: list[Path]) -> None:
    """Refuse files with loops for a CPU's cache; files from elsewhere do not say how they sum."""
    import onnx  # here: a repository for the wheel's server does without

    for path in engines:
        said = onnx.load(path, load_external_data=False).metadata_props
        if ("edge_sum", "sorted") in {(entry.key, entry.value) for entry in said}:
            raise RepositoryError(
                f"{path}: made of loops for a CPU's cache, thousands of small kernels on a GPU: "
                "tritrack export --engine onnx --edge-sum scatter"
            )


def _is_repository(folder: Path) -> bool:
    """Whether a folder is one that was written here; that of somebody else's models is none to replace."""
    return any((folder / name / CONFIG_FILE).is_file() for name in (ENSEMBLE, RULE_FINDER.name))
