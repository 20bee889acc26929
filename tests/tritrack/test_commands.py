"""What the commands do: events in, track files, physics and facts out."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from csv import reader
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np
import pytest

import tritrack
from tritrack.events.parquet import event_file, read_metadata, write_event
from tritrack.events.tracks import read_tracks
from tritrack.stages.card import CARD_FILE, ForeignStage, read_card
from tritrack.stages.contract import CONTRACT_VERSION
from tritrack.stages.pipeline import Pipeline


@pytest.fixture
def find(run, small_engines):
    """``find(events, out)`` in process."""
    pytest.importorskip("faiss")
    pytest.importorskip("numba")
    return lambda events, out, *more: run(
        "find", events, "--local", "--engines", small_engines, "--out", out, *more
    )


def test_find_at_a_working_point(find, small_engines, events, event_folder, tmp_path):
    chain = Pipeline.load(small_engines, threads=2)
    tracks = {}
    for point in (None, "fast", "balanced", "best"):
        out = tmp_path / f"{point}.parquet"
        result = find(event_folder, out, *(("--working-point", point) if point else ()))
        assert result.code == 0, result.err
        tracks[point] = read_tracks(out)
        assert read_metadata(out) == {
            "tritrack_version": version("tritrack"),
            "tritrack_finder": "chain",
            "tritrack_card": "small",
            "tritrack_card_sha256": chain.card.hash,
            "tritrack_working_point": point or "balanced",
        }
        for event in events:
            np.testing.assert_array_equal(tracks[point].labels_for(event), chain.at(point).find(event.hits))
    assert (tracks[None].labels_for(events[0]) != tracks["fast"].labels_for(events[0])).any()


def test_a_working_point_that_the_card_lacks(run, small_engines, event_folder, tmp_path):
    engines, out = shutil.copytree(small_engines, tmp_path / "engines"), tmp_path / "t.csv"
    card = read_card(engines)
    points = {name: card.point(name) for name in ("fast", "balanced")}
    (engines / CARD_FILE).write_bytes(replace(card, working_points=points).to_json())
    result = run(
        "find", event_folder, "--local", "--engines", engines, "--out", out, "--working-point", "best"
    )
    assert result.code == 1
    assert result.err == "tritrack: model small: has no working point best, it has fast, balanced\n"
    assert not out.exists()


def test_find_then_evaluate(run, find, events, event_folder, tmp_path):
    out = tmp_path / "new" / "tracks.parquet"
    result = find(event_folder, out)
    assert result.code == 0, result.err
    for event in events:
        assert f"event {event.event_id}: {event.n_hits} hits, " in result.out
    assert f"{out}: written" in result.out

    result = run("evaluate", event_folder, "--tracks", out, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert (facts["n_events"], facts["n_targets"]) == (2, 300)
    assert facts["n_hits"] == sum(event.n_hits for event in events)
    for name in ("efficiency", "fake_rate", "fragment_rate", "unmatched_rate", "duplicate_rate"):
        assert {"value", "low", "high"} == set(facts[name])


def test_a_submission(run, find, events, event_folder, tmp_path):
    """A .csv holds every hit once, with track_id 0 for no track: what TrackML asks for."""
    path, parquet = tmp_path / "tracks.csv", tmp_path / "tracks.parquet"
    assert find(event_folder, path).code == find(event_folder, parquet).code == 0
    header, *lines = reader(path.read_text().splitlines())
    assert header == ["event_id", "hit_id", "track_id"]
    rows = np.array(lines, dtype=np.int64)
    labels = read_tracks(parquet)
    for event in events:
        _, hit_id, track_id = rows[rows[:, 0] == event.event_id].T
        assert sorted(hit_id) == sorted(event.hit_id)
        assert track_id.min() == 0
        assert track_id.max() > 1
        by_hit = dict(zip(hit_id.tolist(), track_id.tolist(), strict=True))
        assert [by_hit[h] for h in event.hit_id.tolist()] == (labels.labels_for(event) + 1).tolist()
    assert len(rows) == sum(event.n_hits for event in events)
    one, other = (run("evaluate", event_folder, "--tracks", file, "--json").out for file in (path, parquet))
    assert json.loads(one) == json.loads(other)


def test_an_event_over_the_limits_is_left_out_aloud(run, find, events, tmp_path):
    limit = 5000
    many = np.random.default_rng(1).uniform(-700, 700, (limit + 1, 3)).astype(np.float32)
    over = replace(
        events[0],
        event_id=99,
        hits=many,
        hit_id=np.arange(len(many)),
        modules=np.zeros(many.shape, dtype=np.int32),
        truth=None,
    )
    bad = replace(events[0], event_id=98, hits=np.where(events[0].hits > 900, np.nan, events[0].hits))
    for event in (over, bad, events[0]):
        write_event(event, tmp_path / event_file(event.event_id))
    result = find(tmp_path, tmp_path / "tracks.parquet")
    assert result.code == 1
    first, second, last = result.err.splitlines()
    assert first.startswith("tritrack: event 98: HITS: ")
    assert "NaN or infinity: rows " in first
    assert second.startswith(
        f"tritrack: event 99: HITS: {limit + 1} hits, the model's limit max_hits is {limit}"
    )
    assert "without the 2 events" in last
    assert read_tracks(tmp_path / "tracks.parquet").event_ids.tolist() == [events[0].event_id]


def write_events(folder, events, server, moods):
    """Write an event for each mood of the server, numbered from 0."""
    for event_id, how in enumerate(moods):
        hits = events[0].hits if how is None else server.spoil(events[0].hits, how)
        write_event(replace(events[0], event_id=event_id, hits=hits), folder / event_file(event_id))


def test_an_event_that_a_server_cannot_answer_is_left_out_aloud(run, moody_server, events, tmp_path):
    write_events(tmp_path, events, moody_server, [None, "too long", "no memory", None])
    out = tmp_path / "t.parquet"
    result = run("find", tmp_path, "--url", moody_server.url, "--out", out, "--timeout", 1)
    assert result.code == 1
    late, refused, last = result.err.splitlines()
    assert late.startswith(f"tritrack: event 1: no answer from {moody_server.url} within 1 s; ")
    assert refused.startswith(
        f"tritrack: event 2: {moody_server.url} could not take it after 5 attempts: gnn: "
    )
    assert late.endswith("this event is left out")
    assert refused.endswith("this event is left out")
    assert last == f"tritrack: {out}: written, without the 2 events named above"
    assert read_tracks(out).event_ids.tolist() == [0, 3]
    assert read_metadata(out) == {
        "tritrack_version": version("tritrack"),
        "tritrack_finder": "track_finder",
        "tritrack_card": "moody",
        "tritrack_card_sha256": "0" * 64,
        "tritrack_working_point": "fast",
    }


def test_what_was_found_before_a_server_went_is_kept(run, moody_server, events, tmp_path):
    write_events(tmp_path, events, moody_server, [None, "no memory", None, "gone", None])
    out = tmp_path / "t.parquet"
    result = run("find", tmp_path, "--url", moody_server.url, "--out", out, "--in-flight", 1)
    assert result.code == 1
    _, gone, last = result.err.splitlines()
    assert gone.startswith(f"tritrack: event 3: {moody_server.url} is not available after 5 attempts (")
    assert last == (
        f"tritrack: {out}: written, without the 1 event named above and the 2 events from event 3 on"
    )
    assert read_tracks(out).event_ids.tolist() == [0, 2]


def test_evaluate_the_truth(run, event_folder, true_tracks):
    result = run("evaluate", event_folder, "--tracks", true_tracks)
    assert result.code == 0, result.err
    assert "2 events, 3200 hits, 300 tracks of 5 hits or more, 300 particles to find (targets)" in result.out
    (line,) = [line for line in result.out.splitlines() if " efficiency " in line and "1.0000" in line][:1]
    assert "68 % interval" in result.out
    assert "1.0000" in line
    facts = json.loads(run("evaluate", event_folder, "--tracks", true_tracks, "--json").out)
    assert facts["efficiency"]["value"] == 1
    assert facts["fake_rate"]["value"] == facts["duplicate_rate"]["value"] == 0


def test_another_selection(run, event_folder, true_tracks):
    arguments = ("evaluate", event_folder, "--tracks", true_tracks, "--selection", "comparison", "--json")
    facts = json.loads(run(*arguments).out)
    assert (facts["selection"], facts["n_targets"]) == ("comparison", 300)


def test_plots(run, event_folder, true_tracks, tmp_path):
    pytest.importorskip("mplhep")
    result = run("evaluate", event_folder, "--tracks", true_tracks, "--plots", tmp_path / "plots")
    assert result.code == 0, result.err
    assert list((tmp_path / "plots").iterdir())


def test_tracks_of_other_events(run, events, event_folder, true_tracks, tmp_path):
    write_event(replace(events[0], event_id=5), tmp_path / event_file(5))
    result = run("evaluate", tmp_path, "--tracks", true_tracks)
    assert (result.code, result.out) == (1, "")
    assert "event 5: the file has no hits of this event; --skip-missing leaves such events out" in result.err
    result = run("evaluate", tmp_path, "--tracks", true_tracks, "--skip-missing")
    assert result.code == 2
    assert result.err == f"tritrack: evaluate: {true_tracks} has none of the events\n"
    arguments = ("evaluate", event_folder, tmp_path, "--tracks", true_tracks, "--skip-missing")
    result = run(*arguments)
    assert result.code == 0, result.err
    assert "2 events, 3200 hits, " in result.out
    assert f"left out, since {true_tracks} lacks them: 1 of 3 events" in result.out
    facts = json.loads(run(*arguments, "--json").out)
    assert (facts["n_events"], facts["n_missing"], facts["efficiency"]["value"]) == (2, 1, 1)
    assert json.loads(run("evaluate", event_folder, "--tracks", true_tracks, "--json").out)["n_missing"] == 0


def test_no_truth(run, find, events, tmp_path):
    write_event(replace(events[0], truth=None), tmp_path / event_file(1))
    assert find(tmp_path, tmp_path / "tracks.csv").code == 0
    result = run("evaluate", tmp_path, "--tracks", tmp_path / "tracks.csv")
    assert (result.code, result.out) == (1, "")
    assert (
        result.err
        == f"tritrack: event {events[0].event_id}: has no truth, so tracks cannot be judged on it\n"
    )


def test_repository(run, small_engines, tmp_path):
    result = run("repository", "--engines", small_engines, "--out", tmp_path / "repository")
    assert result.code == 0, result.err
    for name in (
        "embedding",
        "graph_fast",
        "filter_fast",
        "gnn",
        "labelling_best",
        "track_finder_best",
    ):
        assert name in result.out
        assert (tmp_path / "repository" / name / "config.pbtxt").is_file()


def test_export(run, small_weights, tmp_path):
    pytest.importorskip("onnxscript")
    out = tmp_path / "engines"
    result = run("export", "--engine", "onnx", "--weights", small_weights, "--out", out)
    assert result.code == 0, result.err
    for stage in ("embedding", "graph", "filter", "gnn", "labelling"):
        assert f"{stage}: " in result.out
    assert read_card(out) == read_card(small_weights)


def test_export_of_a_stage_from_elsewhere(run, small_weights, small_engines, event_folder, tmp_path):
    pytest.importorskip("onnxscript")
    stage = ForeignStage(inputs=("HITS", "EDGE_INDEX"), output="EDGE_SCORE")
    card = replace(read_card(small_weights), name="mixed", foreign={"gnn": stage})
    (tmp_path / "mixed.json").write_bytes(card.to_json())
    arguments = ("--weights", small_weights, "--out", tmp_path / "engines", "--events", event_folder)
    result = run(
        "export",
        "--stage",
        f"gnn={small_engines / 'gnn.onnx'}",
        "--card",
        tmp_path / "mixed.json",
        *arguments,
    )
    assert result.code == 0, result.err
    for name in ("embedding", "graph", "filter", "gnn", "labelling", "chain"):
        assert f"{name}: " in result.out
    exported = read_card(tmp_path / "engines")
    assert (exported.name, exported.foreign) == ("mixed", card.foreign)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ((), 2, "export: --weights is wanted"),
        (("--stage", "gnn=a.onnx"), 2, "export: --stage and --card go together"),
        (("--card", "CARD"), 2, "export: --stage and --card go together"),
        (("--stage", "gnn=a.onnx", "--card", "CARD", "--engine", "tensorrt"), 2, "with --engine onnx alone"),
        (
            ("--stage", "graph=a.onnx", "--card", "CARD"),
            2,
            "export: --stage graph=a.onnx: NAME=FILE.onnx is wanted",
        ),
        (("--stage", "gnn", "--card", "CARD"), 2, "export: --stage gnn: NAME=FILE.onnx is wanted"),
        (
            ("--stage", "gnn=a.onnx", "--stage", "gnn=b.onnx", "--card", "CARD"),
            2,
            "--stage gnn=b.onnx: .*once each",
        ),
        (("--stage", "gnn=a.onnx", "--card", "none.json"), 1, "none.json: no model card there"),
        (
            ("--stage", "gnn=a.onnx", "--card", "CARD"),
            1,
            "files are given for gnn, the card's foreign stages are none",
        ),
    ],
)
def test_stages_from_elsewhere_that_cannot_be(run, small_weights, tmp_path, options, code, sentence):
    pytest.importorskip("onnxscript")
    card = small_weights / "card.json"
    result = run("export", "--out", tmp_path / "out", *(card if text == "CARD" else text for text in options))
    assert result.code == code
    assert re.fullmatch(rf"tritrack: .*{sentence}.*\n", result.err)
    assert not (tmp_path / "out").exists()


def test_export_to_tensorrt_says_what_is_missing(run, small_weights, small_engines, event_folder, tmp_path):
    pytest.importorskip("onnxscript")
    out = tmp_path / "engines"
    arguments = ("export", "--engine", "tensorrt", "--weights", small_weights, "--out", out)
    result = run(*arguments)
    assert result.code == 2
    assert result.err.startswith("tritrack: export --engine tensorrt: give --engines, ")
    result = run(*arguments, "--engines", small_engines, "--events", event_folder)
    assert result.err.count("\n") == 1
    if importlib.util.find_spec("tensorrt") is None:
        assert result.code == 2
        assert result.err.startswith(
            "tritrack: export --engine tensorrt: TensorRT is not installed: pip install "
        )
    assert not out.exists()


def test_tune(run, small_weights, event_folder, tmp_path):
    from tritrack.training.working_point import DEMANDS

    out, before = tmp_path / "tuned", read_card(small_weights)
    result = run(
        "tune", "--weights", small_weights, "--validation", event_folder, "--out", out,
        "--max-z0", 300, "--default", "fast",
    )  # fmt: skip
    assert result.code == 0, result.err
    card = read_card(out)
    assert (card.default, card.points) == ("fast", ("fast", "balanced", "best"))
    assert (card.sha256, card.networks, card.limits) == (before.sha256, before.networks, before.limits)
    for name in card.points:
        point = card.point(name)
        windows = replace(before.point().cuts.windows, max_z0=300, min_chain=DEMANDS[name].min_chain)
        assert point.cuts.windows == windows
        assert 0 <= point.metrics[event_folder.name]["efficiency"] <= 1
        assert f"{name}: radius {point.cuts.radius:.3f}" in result.out
    again = run(
        "tune",
        "--weights",
        out,
        "--validation",
        event_folder,
        "--out",
        out,
        "--point",
        "best",
        "--max-z0",
        90,
    )
    assert again.code == 0, again.err
    other = read_card(out)
    assert [other.point(name) == card.point(name) for name in card.points] == [True, True, False]
    assert other.point("best").cuts.windows.max_z0 == 90


def test_info(run, small_engines):
    result = run("info", "--engines", small_engines, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    card = read_card(small_engines)
    assert facts["tritrack"] == version("tritrack") == tritrack.__version__
    assert facts["contract version"] == CONTRACT_VERSION
    assert facts["libraries"]["numpy"] == np.__version__
    assert facts["engines"]["sha256"] == card.hash
    assert facts["engines"]["card"] == "small"
    assert facts["engines"]["max_hits"] == card.limits.max_hits
    points = facts["engines"]["working points"]
    assert list(points) == ["fast", "balanced", "best"]
    assert facts["engines"]["default"] == "balanced"
    for name, point in points.items():
        assert point["cuts"] == asdict(card.point(name).cuts)
        assert point["metrics"] == {"drawn": {"efficiency": 0.5}}
    table = run("info", "--engines", small_engines).out
    rows = [f"engines, working points, {name}, metrics, drawn" for name in points]
    for fact in (facts["python"], facts["libraries"]["numpy"], card.hash, "efficiency 0.5", *rows):
        assert fact in table


def test_info_of_engines_that_cannot_be_used(run, tmp_path):
    assert "none there" in run("info", "--engines", tmp_path).out
    (tmp_path / "card.json").write_text("{}")
    result = run("info", "--engines", tmp_path, "--json")
    assert result.code == 0
    assert "missing required field" in json.loads(result.out)["engines"][str(tmp_path)]


def test_the_public_face():
    from tritrack.service import errors
    from tritrack.service.aio import AsyncTrackFinder
    from tritrack.service.client import TrackFinder

    assert tritrack.TrackFinder is TrackFinder
    assert tritrack.AsyncTrackFinder is AsyncTrackFinder
    for name in set(tritrack.__all__) - {"__version__"}:
        assert getattr(tritrack, name).__name__ == name
    own = {name for name, error in vars(errors).items() if isinstance(error, type)}
    # A server that did not start is no matter of the client's.
    assert own - set(tritrack.__all__) == {"ServerStartError"}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tritrack.Nothing
