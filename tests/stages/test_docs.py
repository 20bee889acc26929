"""What docs/architecture.md says of tensors and imports is what the code says."""

from __future__ import annotations

import ast
from pathlib import Path

from tritonclient.utils import np_to_triton_dtype

from tritrack.stages.contract import EVENT_OFFSETS, FIT_STEP, STAGES, TRACK_LABEL, TensorSpec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
STEPS = (*STAGES, FIT_STEP)
LIGHT = ("contract", "card", "plan_file")
"""The modules of stages that want neither torch nor ONNX Runtime."""


def rows_of(marker: str) -> list[str]:
    """Return the rows of the table between a pair of markers, its head left out."""
    text = PAGE.read_text().split(f"<!-- {marker} -->")[1].split(f"<!-- end of {marker} -->")[0]
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def stages_with(spec: TensorSpec, kind: str) -> str:
    return ", ".join(stage.name for stage in STEPS if spec in getattr(stage, kind))


def row(spec: TensorSpec) -> str:
    dims = ", ".join(str(dim) for dim in spec.dims)
    inside = stages_with(spec, "engine") + " (inside)"
    given, taken = stages_with(spec, "outputs"), stages_with(spec, "inputs")
    if spec is EVENT_OFFSETS:
        taken = "all of them"
    if spec is TRACK_LABEL:
        taken += ", the client"
    if not given and not taken:  # it stays between a stage's network and what follows it there
        given = taken = inside
    cells = [
        f"`{spec.name}`",
        f"{np_to_triton_dtype(spec.dtype)} [{dims}]",
        spec.unit,
        given or "the client",
        taken or "the client",
        spec.meaning,
    ]
    return f"| {' | '.join(cells)} |"


def imported(package: str) -> set[str]:
    """Return the folders, and the light modules of stages, that a folder's files import, at whatever place."""
    names: list[str] = []
    for path in (ROOT / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names if name.startswith("tritrack.")]
    return {
        f"stages.{rest[0]}" if folder == "stages" and rest and rest[0] in LIGHT else folder
        for _, folder, *rest in parts
        if folder != package
    }


def test_the_table_of_tensors_is_the_contract() -> None:
    tensors = dict.fromkeys(
        spec for stage in STEPS for specs in (stage.inputs, stage.engine, stage.outputs) for spec in specs
    )
    assert rows_of("tensors") == [row(spec) for spec in (*tensors, EVENT_OFFSETS)]


def test_folders_import_what_the_page_says() -> None:
    for line in rows_of("imports"):
        package, allowed = (cell.strip() for cell in line.strip("|").split("|")[:2])
        package = package.strip("`/")
        wanted = {name.strip("` ") for name in allowed.split(",")} - {"nothing"}
        if "stages" in wanted:  # all of a folder includes its parts
            wanted |= {f"stages.{name}" for name in LIGHT}
        unwanted = imported(package) - wanted
        assert not unwanted, (
            f"{package} imports {sorted(unwanted)}, which docs/architecture.md does not allow"
        )
        used = {name.split(".")[0] for name in imported(package)}
        assert {name.split(".")[0] for name in wanted} == used, (
            f"{package}: docs/architecture.md says too much"
        )
