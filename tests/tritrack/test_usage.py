"""What a user did wrong comes back as one clear sentence and an exit code, never as a traceback."""

from __future__ import annotations

import re
import shutil
import socket

import pytest

from tritrack.cli import COMMANDS, app

NAMES = [command.__name__ for command in COMMANDS]
LOAD = ("load", "--events", "{events}", "--url", "localhost:1", "--out", "{tmp}/load.json")
SIMULATE = ("simulate", "{tmp}/events", "--events", 1, "--pileup", 1, "--seed", 1)


def test_help(run):
    result = run("--help")
    assert result.code == 0
    assert result.err == ""
    for name in NAMES:
        assert f" {name} " in result.out


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command(run, name):
    result = run(name, "--help")
    assert result.code == 0
    assert result.err == ""
    (info,) = [command for command in app.registered_commands if command.callback.__name__ == name]
    assert info.callback.__doc__ in result.out
    # In "[mm]" and the like the help's renderer sees a markup and swallows it: units stand as words.
    assert not re.search(r" [.,:](\s|$)", result.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "option", "unit"),
    [
        ("simulate", "--beamspot-z", "in mm"),
        ("simulate", "--noise", "0 to 1"),
        ("simulate", "--pileup", "number"),
        ("train", "--max-hits", "in hits"),
        ("train", "--max-pairs", "pairs"),
        ("train", "--max-edges", "pairs"),
        ("find", "--timeout", "in s"),
        ("load", "--duration", "in s"),
        ("load", "--timeout", "in s"),
    ],
)
def test_units(run, command, option, unit):
    (line,) = [line for line in run(command, "--help").out.splitlines() if f" {option} " in line]
    assert unit in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nothing",), "No such command 'nothing'"),
        (("find",), "Missing argument"),
        (("find", "{events}"), "Missing option '--out'"),
        (("find", "{events}", "--out", "{tmp}/t.parquet"), "find: give either --url HOST:PORT or --local"),
        (
            ("find", "{events}", "--out", "{tmp}/t.parquet", "--local", "--url", "localhost:1"),
            "find: give either --url HOST:PORT or --local",
        ),
        (("find", "{events}", "--out", "{tmp}/t.root", "--local"), "t.root: a track file ends in"),
        (("find", "{events}", "--out", "{tmp}/t.csv", "--local", "--threads", 0), "'--threads'"),
        (
            ("find", "{events}", "--out", "{tmp}/t.csv", "--local", "--working-point", "quick"),
            "'quick' is not one of 'fast', 'balanced', 'best'",
        ),
        (("evaluate", "{events}"), "Missing option '--tracks'"),
        (
            ("evaluate", "{events}", "--tracks", "{tracks}", "--selection", "all"),
            "--selection: all given, targets or comparison wanted",
        ),
        (("train", "everything"), "'everything' is not one of 'embedding', 'filter', 'gnn', 'all'"),
        (("simulate", "{tmp}/events", "--events", 0), "'--events'"),
        (("repository", "--engines", "{tmp}", "--out", "{tmp}/r", "--server", "other"), "'other' is not one"),
        (("serve", "{tmp}", "--grpc-port", 70000), "'--grpc-port'"),
        (("load", "--url", "localhost:1"), "Missing option '--events'"),
        (
            ("load", "--events", "{events}", "--url", "localhost:1", "--rate", 1),
            "load: give --url HOST:PORT and --out FILE.json, or --perf-analyzer FILE.json",
        ),
        ((*LOAD,), "load: give either --concurrency or --rate"),
        ((*LOAD, "--rate", 1, "--concurrency", 1), "load: give either --concurrency or --rate"),
        (
            (*LOAD, "--rate", 1, "--duration", 1, "--requests", 1),
            "load: give either --duration or --requests",
        ),
    ],
)
def test_misuse(run, tmp_path, event_folder, true_tracks, arguments, sentence):
    result = run(*fill(arguments, tmp_path, event_folder, true_tracks))
    assert result.code == 2
    assert result.out == ""
    assert sentence in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("find", "{tmp}/none", "--out", "{tmp}/t.csv", "--url", "localhost:1"),
            r"tritrack: .*none: no such file or folder",
        ),
        (
            ("find", "{tmp}", "--out", "{tmp}/t.csv", "--url", "localhost:1"),
            r"tritrack: .*: no events there; wanted are event\*\.parquet or .*",
        ),
        (("evaluate", "{events}", "--tracks", "{tmp}/none.csv"), r"tritrack: .*none\.csv: no such file"),
        (
            ("evaluate", "{events}", "--tracks", "{tmp}/none.txt"),
            r"tritrack: .*none\.txt: a track file ends in .*",
        ),
        (
            ("evaluate", "{tmp}/none", "--tracks", "{tracks}"),
            r"tritrack: .*none: no such file or folder",
        ),
        (
            ("repository", "--engines", "{tmp}", "--out", "{tmp}/r"),
            r"tritrack: .*card\.json: no model card there",
        ),
        (("repository", "--out", "{tmp}/r"), r"tritrack: engines: none given, .*"),
        (
            ("repository", "--out", "{tmp}/r", "--rules", "weights/rules", "--fused"),
            r"tritrack: engines: none given, .*",
        ),
        ((*LOAD, "--rate", 0), r"tritrack: rate: 0 given, above 0 wanted"),
    ],
)
def test_failures(run, tmp_path, event_folder, true_tracks, arguments, sentence):
    result = run(*fill(arguments, tmp_path, event_folder, true_tracks))
    assert_sentence(result, sentence)
    assert list(tmp_path.iterdir()) == []  # a track file appears whole or not at all


@pytest.mark.parametrize("command", ["info", "find"])
def test_no_server(run, tmp_path, event_folder, command):
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{held.getsockname()[1]}"
        if command == "info":
            result = run("info", "--url", url)
        else:
            result = run("find", event_folder, "--url", url, "--out", tmp_path / "t.csv")
    assert_sentence(
        result, rf"tritrack: .*{url} is not available after 5 attempts .* is the server running.*"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"tritrack: .*card\.json: .*truncated.*"),
        ('{"name": "small"}', r"tritrack: .*card\.json: .*missing required field.*"),
    ],
)
@pytest.mark.parametrize("command", ["find", "repository", "export", "serve"])
def test_broken_card(run, tmp_path, event_folder, command, text, sentence):
    folder = tmp_path / "embedding" / "1"  # where a model repository has a card
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(text)
    if command == "serve":
        result = run("serve", tmp_path, "--tritonserver", "/bin/true")
    elif command == "find":
        pytest.importorskip("numba")
        pytest.importorskip("onnxruntime")
        pytest.importorskip("faiss")
        result = run("find", event_folder, "--local", "--engines", folder, "--out", tmp_path / "t.csv")
    elif command == "export":
        pytest.importorskip("torch")
        pytest.importorskip("onnxscript")
        result = run("export", "--weights", folder, "--out", tmp_path / "engines")
    else:
        result = run("repository", "--engines", folder, "--out", tmp_path / "repository")
    assert result.code == 1
    assert re.fullmatch(sentence, result.err.strip())


def test_broken_engine(run, tmp_path, small_engines, event_folder):
    engines = shutil.copytree(small_engines, tmp_path / "engines")
    (engines / "filter.onnx").write_bytes(b"nothing of the kind")
    out = tmp_path / "t.csv"
    result = run("find", event_folder, "--local", "--engines", engines, "--out", out)
    assert_sentence(result, r"tritrack: .*filter\.onnx: ONNX Runtime cannot load this engine: .*")
    assert not out.exists()


def test_no_repository(run, tmp_path):
    result = run("serve", tmp_path, "--tritonserver", tmp_path / "none")
    assert_sentence(result, r"tritrack: .*none: no tritonserver there")


@pytest.mark.parametrize("option", [("--noise", 1), ("--inefficiency", -0.5), ("--beamspot-z", 5000)])
def test_simulation_out_of_range(run, tmp_path, option):
    result = run(*fill(SIMULATE, tmp_path), *option)
    name = option[0].removeprefix("--").replace("-", "_")
    assert_sentence(result, rf"tritrack: simulation: {name} is .*, it should be from 0 to .*")


def test_training_without_events(run, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("faiss")
    folders = [f"--{name}={tmp_path}" for name in ("events", "validation", "out", "work")]
    result = run("train", "all", *folders)
    assert_sentence(result, r"tritrack: .*: no Parquet events there")


def test_event_that_is_no_parquet(run, tmp_path, true_tracks):
    path = tmp_path / "event000000001.parquet"
    path.write_bytes(b"nothing of the kind")
    result = run("evaluate", path, "--tracks", true_tracks)
    assert_sentence(result, r"tritrack: .*event000000001\.parquet: cannot be read as Parquet: .*")


def test_out_that_cannot_be_written(run, tmp_path, small_engines, event_folder):
    pytest.importorskip("numba")
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "t.csv"
    result = run("find", event_folder, "--local", "--engines", small_engines, "--out", out)
    assert result.code == 1
    assert "file" in result.err
    assert "Traceback" not in result.err


def test_repository_over_something_else(run, tmp_path, small_engines):
    engines = shutil.copytree(small_engines, tmp_path / "engines")
    result = run("repository", "--engines", engines, "--out", engines)
    assert_sentence(result, r"tritrack: .*engines: holds something that is no model repository.*")
    assert (engines / "card.json").exists()


def fill(arguments, tmp_path, events="", tracks=""):
    return [
        a.format(tmp=tmp_path, events=events, tracks=tracks) if isinstance(a, str) else a for a in arguments
    ]


def assert_sentence(result, sentence):
    """One line on stderr, and the exit code of something that went wrong on the way."""
    assert result.code == 1
    assert re.fullmatch(sentence, result.err.strip()), result.err
