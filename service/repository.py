"""What a model repository needs of the machine that serves it."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2 as triton

from tritrack.ensemble_repo.plan import CONFIG_FILE, ENTRY_STEP, GPU, PYTHON_FILES
from tritrack.service.errors import ServerStartError
from tritrack.service.shm import SHM, free_bytes
from tritrack.stages.card import CARD_FILE, CardError, read_card
from tritrack.stages.contract import EDGE_INDEX, NATIVE_STEPS, STAGES
from tritrack.stages.plan_file import check_plan, find_gpu, plan_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tritrack.stages.card import ModelCard
    from tritrack.stages.contract import StageSpec, TensorSpec

logger = logging.getLogger(__name__)

STEP_SHM = 1 << 20
"""Bytes of shared memory that each instance of a Python step takes at its start."""

ENLARGE = "enlarge it (docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm)"


def shared_memory_at_limits(card: ModelCard, chain: Sequence[StageSpec]) -> int:
    """Return the bytes of shared memory that one event at the card's limits takes on its way through a chain.

    Each step has its own copy of what it takes and gives.
    """
    return sum(taken + given for taken, given in _bytes_at_limits(card, chain))


def gpu_memory_at_limits(card: ModelCard) -> int:
    """Return the bytes that the tensors between the steps of one event at the card's limits take on a GPU.

    Triton has each of them once, hits among them, and keeps those of an event that waits, too.
    """
    (hits, _), *_ = sizes = list(_bytes_at_limits(card, NATIVE_STEPS))
    return hits + sum(given for _, given in sizes)


def _bytes_at_limits(card: ModelCard, chain: Sequence[StageSpec]) -> Iterator[tuple[int, int]]:
    """Yield the bytes that each step of a chain takes and gives at the limits."""
    sizes = {
        "n_hits": card.limits.max_hits,
        "n_columns": len(card.columns),
        "d": card.networks.embedding_dim,
        "n_edges": card.limits.max_pairs,
    }

    def of(specs: Sequence[TensorSpec]) -> int:
        return sum(
            spec.dtype.itemsize * math.prod(dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims)
            for spec in specs
        )

    for step in chain:
        taken = of(step.inputs)
        if EDGE_INDEX in step.inputs and EDGE_INDEX in step.outputs:  # the filter's cut
            sizes["n_edges"] = card.limits.max_edges
        yield taken, of(step.outputs)


def check_repository(repository: Path, *, models: Sequence[str] = ()) -> None:
    """Check a repository's card, its models, its GPU and TensorRT engines, and that its tensors have room.

    Raises
    ------
    ServerStartError
        Where there is no repository, its card or a configuration cannot be used, a model is missing, it wants a GPU
        and there is none, an engine was built for another machine, or shared memory does not do for the start.
    """
    # In Python run all models but a container's networks, and none of these is there alone.
    in_python = sorted(path for file in PYTHON_FILES for path in repository.glob(f"*/*/{file}"))
    if not in_python:
        raise ServerStartError(f"{repository}: no model repository there; write one with tritrack repository")
    try:
        card = next((read_card(path.parent) for path in in_python if path.name == CARD_FILE), None)
        for plan in sorted(repository.glob(f"*/*/{plan_file('*')}")):
            check_plan(plan)
    except CardError as error:
        raise ServerStartError(str(error)) from None
    there = sorted(path.name for path in repository.iterdir() if path.is_dir())
    if missing := [name for name in models if name not in there]:
        raise ServerStartError(f"{repository}: has no model {missing[0]}, it has {', '.join(there)}")
    asked = models or there
    loaded = _loaded(repository, asked)
    on_gpu = _on_gpu(repository, loaded)
    if on_gpu and find_gpu() is None:
        raise ServerStartError(
            f"{repository}: {on_gpu[0]} wants a GPU, and there is none here; write the repository with --device cpu"
        )
    if not os.access(SHM, os.W_OK):
        raise ServerStartError(f"{SHM}: cannot be written to, and the server's steps need it")
    # What is asked for and lacks its configuration is a model all the same, and is told.
    versions = {path.parent for path in in_python if path.parent.parent.name in loaded.union(asked)}
    free, needed = free_bytes(), sum(map(_instances, versions)) * STEP_SHM
    if free < needed:
        raise ServerStartError(
            f"{SHM}: {free >> 20} MB are free, the server's steps take {needed >> 20} MB; {ENLARGE}"
        )
    if card is None or not any(_steps(repository / name) for name in loaded):
        return  # no event goes from step to step
    chain = NATIVE_STEPS if ENTRY_STEP.name in loaded else STAGES
    at_limits = needed + shared_memory_at_limits(card, chain)
    if free < at_limits:
        logger.warning(
            "%s: %d MB are free, but an event at the model's limits takes %d MB and will fail; %s",
            SHM,
            free >> 20,
            at_limits >> 20,
            ENLARGE,
        )


def gpu_arguments(repository: Path, *, models: Sequence[str] = (), in_flight: int) -> list[str]:
    """Return the server's arguments for its pool of GPU memory, where it keeps the tensors between the steps.

    What the pool has no room for goes into the host's memory. There must be no pool of pinned memory, which would come
    first: Triton's Python backend takes that for a GPU's and leaves the tensor unwritten, without a word.

    Parameters
    ----------
    repository, models
        What it serves (see `check_repository`).
    in_flight
        Events at the card's limits that there must be room for.

    Returns
    -------
    list of str
        None where nothing that is loaded wants a GPU.
    """
    there = [path.name for path in repository.iterdir() if path.is_dir()]
    if not _on_gpu(repository, _loaded(repository, models or there)):
        return []
    card = read_card(next(repository.glob(f"*/*/{CARD_FILE}")).parent)
    return [
        f"--cuda-memory-pool-byte-size={GPU}:{in_flight * gpu_memory_at_limits(card)}",
        "--pinned-memory-pool-byte-size=0",
    ]


def _on_gpu(repository: Path, loaded: Iterable[str]) -> list[str]:
    """Return which of the loaded models want a GPU."""
    return sorted(name for name in loaded if _wants_gpu(repository / name))


def _instances(version: Path) -> int:
    """Return how many instances of a model its configuration asks for."""
    # Without a group Triton runs one.
    return sum(group.count for group in _read_config(version.parent).instance_group) or 1


def _loaded(repository: Path, models: Sequence[str]) -> set[str]:
    """Return the models that the server loads for these: they, and an ensemble's steps; of what is no model none."""
    there = {path.parent.name for path in repository.glob(f"*/{CONFIG_FILE}")}
    return there & {
        *models,
        *(step for name in there.intersection(models) for step in _steps(repository / name)),
    }


def _steps(model: Path) -> list[str]:
    """Return the models that are the steps of an ensemble; of any other none."""
    return [step.model_name for step in _read_config(model).ensemble_scheduling.step]


def _wants_gpu(model: Path) -> bool:
    groups = _read_config(model).instance_group
    return any(group.kind == triton.ModelInstanceGroup.KIND_GPU for group in groups)


def _read_config(model: Path) -> Any:
    path = model / CONFIG_FILE
    try:
        return text_format.Parse(path.read_text(), triton.ModelConfig())
    except FileNotFoundError:
        raise ServerStartError(f"{path}: missing") from None
    except text_format.ParseError as error:
        raise ServerStartError(f"{path}: no configuration of Triton's: {error}") from None
