"""The commands that make things: events, weights, engines, a model repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tritrack.commands_find import FinderName
from tritrack.ensemble_repo.images import PINNED
from tritrack.ensemble_repo.plan import DeviceKind, EngineKind, ServerKind
from tritrack.failures import UsageError
from tritrack.stages.card import WORKING_POINTS, NetworkName, Precision, WorkingPointName, read_card_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tritrack.export.foreign import Foreign
    from tritrack.export.gates import GateResult

# Libraries are imported inside each command, so that a client without extras has every --help.

console = Console(highlight=False, soft_wrap=True)


EdgeSum = Literal["sorted", "scatter"]
LastNetwork = Literal["embedding", "filter", "gnn", "all"]


def bar() -> Progress:
    """Return the project's progress bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def simulate(
    out: Annotated[Path, typer.Argument(help="Folder for the events, one Parquet file each.")],
    *,
    events: Annotated[int, typer.Option(min=1, help="Number of events.")],
    pileup: Annotated[float, typer.Option(min=0, help="Mean number of soft collisions in an event.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed; event I of a seed is always the same bytes.")],
    first: Annotated[int, typer.Option(min=0, help="Number of the first event.")] = 0,
    noise: Annotated[
        float, typer.Option(help="Share of an event's final hits that are noise, 0 to 1.")
    ] = 0.0,
    inefficiency: Annotated[
        float, typer.Option(help="Share of the particles' hits that are lost, 0 to 1.")
    ] = 0.0,
    beamspot_z: Annotated[float, typer.Option(help="Spread of the collisions along the beam, in mm.")] = 55.0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Simulate top pairs with pile-up in the TrackML detector (Pythia 8, ACTS Fatras)."""
    from tritrack.events.simulation import SimulationSettings
    from tritrack.events.simulation import simulate as run

    settings = SimulationSettings(
        seed=seed, pileup=pileup, noise=noise, inefficiency=inefficiency, beamspot_z=beamspot_z
    )
    with bar() as progress:
        task = progress.add_task("simulating", total=events, note="")
        for path in run(settings, out, n_events=events, first=first, jobs=jobs):
            progress.update(task, advance=1, note=path.name)


def train(
    network: Annotated[LastNetwork, typer.Argument(help="Train up to and including this network.")],
    *,
    events: Annotated[list[Path], typer.Option(help="Folder of events to train on; may be given again.")],
    validation: Annotated[
        list[Path], typer.Option(help="Folder of other events, to choose the cuts on; may be given again.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights, their card and the training's curves.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints; a stopped training resumes.")],
    name: Annotated[str, typer.Option(help="Name of the model.")] = "tritrack",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 1,
    embedding_steps: Annotated[int, typer.Option(min=3, help="Steps, a wedge of an event each.")] = 2500,
    filter_steps: Annotated[int, typer.Option(min=3, help="Steps, a wedge of an event each.")] = 1200,
    gnn_steps: Annotated[int, typer.Option(min=3, help="Steps, a wedge of an event each.")] = 5000,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak of the learning rate.")] = 2e-3,
    gnn_learning_rate: Annotated[float, typer.Option(min=0, help="Its peak for the GNN.")] = 2e-3,
    gnn_from: Annotated[
        Path | None, typer.Option(help="Weights whose GNN to begin with; a fresh one if not given.")
    ] = None,
    max_z0: Annotated[
        float, typer.Option(min=0, help="Window on a pair's z at the beam line, in mm.")
    ] = 200.0,
    max_curvature: Annotated[
        float, typer.Option(min=0, help="Window on a pair's curvature, in 1/mm; 6e-4 / (pT in GeV) in 2 T.")
    ] = 1.8e-3,
    overlap: Annotated[
        float, typer.Option(min=0, help="Distance up to which a pair passes whatever its direction, in mm.")
    ] = 15.0,
    min_chain: Annotated[
        int, typer.Option(min=1, help="Pairs of the chain that a pair must be part of; 1 asks for none.")
    ] = 3,
    max_d0: Annotated[
        float, typer.Option(min=0, help="Distance from the beam line that a chain may pass at, in mm.")
    ] = 1.0,
    max_hits: Annotated[
        int, typer.Option(min=1, help="Largest event the model will take, in hits.")
    ] = 300_000,
    max_pairs: Annotated[
        int, typer.Option(min=1, help="Largest graph of an event, in pairs of hits.")
    ] = 16_000_000,
    max_edges: Annotated[
        int, typer.Option(min=1, help="Most pairs of an event that the filter may keep for the GNN.")
    ] = 3_000_000,
    default: Annotated[WorkingPointName, typer.Option(help="Working point where none is named.")] = "best",
) -> None:
    """Train the embedding, the filter and the GNN, in that order, and choose the working points."""
    from tritrack.stages.card import Limits, Networks, Windows
    from tritrack.training.loop import Schedule
    from tritrack.training.train import Plan, Trainer

    plan = Plan(
        events=tuple(events),
        validation=tuple(validation),
        work=work,
        out=out,
        name=name,
        seed=seed,
        embedding=Schedule(steps=embedding_steps, learning_rate=learning_rate),
        filter=Schedule(steps=filter_steps, learning_rate=learning_rate),
        gnn=Schedule(steps=gnn_steps, learning_rate=gnn_learning_rate),
        gnn_from=gnn_from,
        networks=Networks(),
        windows=Windows(
            max_z0=max_z0,
            max_curvature=max_curvature,
            overlap=overlap,
            min_chain=min_chain,
            max_d0=max_d0,
        ),
        limits=Limits(max_hits=max_hits, max_pairs=max_pairs, max_edges=max_edges),
        default=default,
    )
    with bar() as progress:
        tasks: dict[str, TaskID] = {}

        def on_step(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note="")
            progress.update(tasks[what], completed=done, note=note)

        trainer = Trainer(plan, on_step=on_step, on_note=progress.console.print)
        card = trainer.run("gnn" if network == "all" else network)
    if card is not None:
        console.print(f"{out}: weights and card of {card.name}")


def tune(
    *,
    finder: Annotated[
        FinderName, typer.Option(help="The chain's cuts, or the rule-based finder's windows.")
    ] = ("chain"),
    weights: Annotated[Path | None, typer.Option(help="Folder of weights; not for the rules.")] = None,
    validation: Annotated[
        list[Path], typer.Option(help="Folder of events to choose the cuts on; may be given again.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights with their new card, or for the rules.")],
    max_z0: Annotated[
        float | None, typer.Option(min=0, help="Another window on a pair's z at the beam line, in mm.")
    ] = None,
    max_curvature: Annotated[
        float | None, typer.Option(min=0, help="Another window on a pair's curvature, in 1/mm.")
    ] = None,
    max_d0: Annotated[
        float | None, typer.Option(min=0, help="Another distance from the beam line for chains, in mm.")
    ] = None,
    point: Annotated[
        WorkingPointName | None, typer.Option(help="The only working point to choose; all if not given.")
    ] = None,
    default: Annotated[
        WorkingPointName | None, typer.Option(help="Another working point where none is named.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the rules (rules).")] = None,
    min_pt: Annotated[
        float | None, typer.Option(min=0.1, help="Momentum that rules look for tracks from, in GeV (0.75).")
    ] = None,
    field: Annotated[
        float | None, typer.Option(min=0.01, help="The detector's field along the beam, in T (2).")
    ] = None,
    max_hits: Annotated[
        int | None, typer.Option(min=1, help="Largest event the rules will take, in hits (300,000).")
    ] = None,
) -> None:
    """Choose the cuts of the working points anew, into the model card; or derive rules from events."""
    if finder == "rules":
        if (weights, max_z0, max_curvature, max_d0, point, default) != (None,) * 6:
            raise UsageError(
                "tune: --finder rules takes --validation, --out, --name, --min-pt, --field and --max-hits"
            )
        _derive_rules(validation, out=out, name=name, min_pt=min_pt, field=field, max_hits=max_hits)
        return
    if (name, min_pt, field, max_hits) != (None,) * 4:
        raise UsageError("tune: --name, --min-pt, --field and --max-hits are of --finder rules")
    if weights is None:
        raise UsageError("tune: --weights is wanted, the folder of weights to choose cuts for")
    _choose_cuts(
        weights,
        validation,
        out=out,
        max_z0=max_z0,
        max_curvature=max_curvature,
        max_d0=max_d0,
        point=point,
        default=default,
    )


def _choose_cuts(
    weights: Path,
    validation: list[Path],
    *,
    out: Path,
    max_z0: float | None,
    max_curvature: float | None,
    max_d0: float | None,
    point: WorkingPointName | None,
    default: WorkingPointName | None,
) -> None:
    """Choose cuts with the card's windows, but for those that are given, and write the weights with their new card."""
    from tritrack.stages.weights import load_weights, save_weights
    from tritrack.training.working_point import choose_working_points, validation_sets

    card, networks = load_weights(weights)
    windows = card.point(point).cuts.windows
    windows = replace(
        windows,
        max_z0=windows.max_z0 if max_z0 is None else max_z0,
        max_curvature=windows.max_curvature if max_curvature is None else max_curvature,
        max_d0=windows.max_d0 if max_d0 is None else max_d0,
    )
    points = choose_working_points(
        networks,
        windows=windows,
        sets=validation_sets(validation),
        on_note=console.print,
        names=WORKING_POINTS if point is None else (point,),
    )
    card = replace(card, working_points=card.working_points | points, default=default or card.default)
    save_weights(networks, card=card, folder=out)
    console.print(f"{out}: weights and card of {card.name}")


def _derive_rules(
    validation: list[Path],
    *,
    out: Path,
    name: str | None,
    min_pt: float | None,
    field: float | None,
    max_hits: int | None,
) -> None:
    from tritrack.events.source import read_all
    from tritrack.rules.tuning import derive_rules
    from tritrack.rules.windows import write_rules

    if len({folder.name for folder in validation}) < len(validation):
        raise UsageError("tune: two folders of --validation have one name; their metrics go by it")
    sets = {folder.name: list(read_all([folder])) for folder in validation}
    rules = derive_rules(
        sets,
        name=name or "rules",
        min_pt=min_pt or 0.75,
        field=field or 2.0,
        max_hits=max_hits or 300_000,
        on_note=console.print,
    )
    console.print(f"{write_rules(rules, out)}: rules {rules.name}", markup=False)


def export(
    *,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of weights; wanted unless --stage gives every network.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the engines.")],
    engine: Annotated[EngineKind, typer.Option(help="Engine to export to.")] = "onnx",
    engines: Annotated[
        Path | None, typer.Option(help="For tensorrt: folder of the ONNX engines to build from.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="For onnx: what the networks' inner layers compute in.")
    ] = "fp32",
    edge_sum: Annotated[
        EdgeSum, typer.Option(help="For onnx: sorted is for a CPU, scatter for a GPU and TensorRT.")
    ] = "sorted",
    threads: Annotated[int, typer.Option(min=1, help="Threads an engine is gated under.")] = 2,
    events: Annotated[
        list[Path], typer.Option(help="Events to compare the engines with torch on, besides drawn hits.")
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
    stage: Annotated[
        list[str], typer.Option(help="NAME=FILE.onnx: a network from elsewhere; may be given again.")
    ] = [],  # noqa: B006
    card: Annotated[
        Path | None, typer.Option(help="With --stage: JSON file of the model card that maps the files.")
    ] = None,
) -> None:
    """Export the five stages, each behind its parity gate."""
    from tritrack.events.source import read_all

    if stage or card is not None:
        if engine != "onnx" or not stage or card is None:
            raise UsageError("export: --stage and --card go together, and with --engine onnx alone")
    elif weights is None:
        raise UsageError("export: --weights is wanted, the folder of weights to export")
    if engine == "tensorrt":
        if weights is None or engines is None or not events:
            raise UsageError(
                "export --engine tensorrt: give --engines, the ONNX files to build from, and --events, whose "
                "sizes the engines are tuned for"
            )
        _export_plans(weights=weights, engines=engines, out=out, events=events)
    else:
        from tritrack.export.onnx import check_out, export_engines

        check_out(out, reads=[card])
        export_engines(
            weights=weights,
            out=out,
            threads=threads,
            precision=precision,
            edge_sum=edge_sum,
            events=list(read_all(events)) if events else [],
            foreign=None if card is None else _foreign(stage, card=card),
            on_stage=print_gates,
        )
    console.print(f"{out}: engines for {engine}, and the model card")


def _foreign(stages: Sequence[str], *, card: Path) -> Foreign:
    from tritrack.export.foreign import Foreign

    files = {}
    for given in stages:
        name, _, file = given.partition("=")
        network = next((known for known in get_args(NetworkName) if known == name), None)
        if network is None or not file or network in files:
            raise UsageError(
                f"export: --stage {given}: NAME=FILE.onnx is wanted, once each, of {', '.join(get_args(NetworkName))}"
            )
        files[network] = Path(file)
    return Foreign(card=read_card_file(card), files=files)


def _export_plans(*, weights: Path, engines: Path, out: Path, events: list[Path]) -> None:
    from tritrack.events.source import read_all
    from tritrack.export.tensorrt import NoTensorRTError, export_plans, find_tensorrt

    try:
        find_tensorrt()  # before the events are read
        export_plans(
            weights=weights, engines=engines, out=out, events=list(read_all(events)), on_stage=print_gates
        )
    except NoTensorRTError as error:
        raise UsageError(f"export --engine tensorrt: {error}") from None


def print_gates(stage: str, results: Sequence[GateResult]) -> None:
    """Print a stage's parity in one line."""
    worst = max(results, key=lambda result: result.deviation / result.tolerance if result.tolerance else 0)
    console.print(
        f"{stage}: {len(results)} comparisons passed, largest deviation {worst.deviation:.1e} "
        f"(tolerance {worst.tolerance:.0e})"
    )


def repository(
    *,
    engines: Annotated[
        Path | None, typer.Option(help="Folder of engines; not wanted for the models of --rules alone.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the model repository.")],
    server: Annotated[ServerKind, typer.Option(help="Server that will read it.")] = "embedded",
    device: Annotated[DeviceKind, typer.Option(help="Device that the stages run on.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each stage.")] = 2,
    fused: Annotated[
        bool, typer.Option("--fused", help="Write the chain in one process, too: track_finder_fused.")
    ] = False,
    rules: Annotated[
        Path | None, typer.Option(help="Folder of rules: write the rule-based finder and the fit.")
    ] = None,
    image: Annotated[
        str, typer.Option(help="For a container: tag of the image that will load it (docs/containers.md).")
    ] = PINNED,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            min=1, help="For a container on a GPU: MB that each ONNX network may take; no limit if not given."
        ),
    ] = None,
    instances: Annotated[
        list[str],
        typer.Option(
            help="Instances of every step, or of one (gnn=2); each has its own threads; may be given again."
        ),
    ] = [],  # noqa: B006 (typer reads it, nothing writes to it)
) -> None:
    """Write the Triton model repository of a folder of engines, of rules, or both."""
    from tritrack.ensemble_repo.plan import read_instances
    from tritrack.ensemble_repo.render import render_repository

    if gpu_memory is not None and (server, device) != ("container", "gpu"):
        raise UsageError("repository: --gpu-memory goes with --server container --device gpu")
    render_repository(
        engines=engines,
        out=out,
        server=server,
        device=device,
        threads=threads,
        fused=fused,
        rules=rules,
        image=image,
        gpu_memory=gpu_memory,
        instances=read_instances(instances),
    )
    console.print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_dir()))}")
