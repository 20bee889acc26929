"""The client alone: what works without any extra, and the extra that each other command names."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tritrack.failures import OPTIONAL_LIBRARIES

PROGRAM = """
import contextlib, io, json, sys
libraries, commands = json.load(sys.stdin)
for name in libraries:
    sys.modules[name] = None  # an import of it fails as if it were not installed
import tritrack.cli
results = []
for arguments in commands:
    sys.argv = ["tritrack", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            tritrack.cli.main()
        except SystemExit as ended:
            code = ended.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
imported = [name for name in libraries if sys.modules.get(name) is not None]
json.dump([results, imported], sys.stdout)
"""


def without(libraries, commands):
    """Run commands where libraries are not installed: [code, stdout, stderr] of each."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([sorted(libraries), [[str(a) for a in command] for command in commands]]),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results, imported = json.loads(done.stdout)
    assert imported == []
    return results


def test_the_client_alone(event_folder, true_tracks, tmp_path):
    evaluate = ("evaluate", event_folder, "--tracks", true_tracks)
    find = ("find", event_folder, "--out", tmp_path / "t.csv")
    load = ("load", "--events", event_folder, "--url", "127.0.0.1:1", "--out", tmp_path / "l" / "load.json")
    commands = [
        ("--help",),
        *((name, "--help") for name in ("simulate", "train", "export", "repository", "serve", "find")),
        evaluate,
        (*evaluate, "--json"),
        ("info",),
        ("info", "--json"),
        ("load", "--events", event_folder, "--perf-analyzer", tmp_path / "p" / "input.json"),
        (*find, "--url", "127.0.0.1:1"),
        (*load, "--requests", 2, "--concurrency", 1, "--pid", os.getpid()),
        (*find, "--local"),
        (*evaluate, "--plots", tmp_path / "plots"),
        ("simulate", tmp_path / "events", "--events", 1, "--pileup", 1, "--seed", 1),
        ("train", "all", *(f"--{name}={tmp_path}" for name in ("events", "validation", "out", "work"))),
        ("export", "--weights", tmp_path, "--out", tmp_path / "engines"),
    ]
    results = without(OPTIONAL_LIBRARIES, commands)
    *works, no_server, no_load, local, plots, simulate, train, export = results
    for (code, out, err), command in zip(works, commands, strict=False):
        assert (code, err) == (0, ""), command
        assert out
    assert json.loads(works[8][1])["efficiency"]["value"] == 1
    assert json.loads(works[10][1])["device"] == "cpu"
    assert no_server[0] == 1
    assert "127.0.0.1:1 is not available" in no_server[2]
    assert no_load[0] == 1
    assert "no answer: 2 unavailable (the event: 127.0.0.1:1 is not available" in no_load[1]
    (loaded,) = json.loads((tmp_path / "l" / "load.json").read_text())["loads"]
    assert loaded["absent"][:2] == [
        "the server's processor and memory: psutil is not installed",
        "GPUs: pynvml is not installed",
    ]
    for (code, _, err), extra in (
        (local, "server"),
        (plots, "plots"),
        (simulate, "simulate"),
        (train, "train"),
        (export, "export"),
    ):
        assert code == 2
        assert err.count("\n") == 1
        assert err.endswith(f" is not installed: in tritrack's folder, pip install '.[{extra}]'\n")
    assert {path.name for path in tmp_path.iterdir()} == {"l", "p"}


@pytest.mark.parametrize("library", ["numba", "onnxruntime"])
def test_a_library_of_several_extras_is_named_by_the_command(library, event_folder, tmp_path):
    commands = {
        "export": ("export", "--weights", tmp_path, "--out", tmp_path / "engines"),
        "train": ("train", "all", *(f"--{n}={tmp_path}" for n in ("events", "validation", "out", "work"))),
        "server": ("find", event_folder, "--local", "--engines", tmp_path, "--out", tmp_path / "t.csv"),
    }
    needed_by = {"onnxruntime": {"export", "server"}}
    pytest.importorskip("safetensors")
    pytest.importorskip("onnxscript")
    for (code, _, err), extra in zip(without([library], commands.values()), commands, strict=True):
        if extra in needed_by.get(library, commands):
            assert (code, err) == (
                2,
                f"tritrack: {library} is not installed: in tritrack's folder, pip install '.[{extra}]'\n",
            )
        else:
            assert "is not installed" not in err


def test_a_library_of_the_client_keeps_its_traceback(event_folder, true_tracks):
    """That the installation is broken is no mistake of the user's."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, tritrack.cli\nsys.modules['scipy'] = None\ntritrack.cli.main()",
            "evaluate",
            str(event_folder),
            f"--tracks={true_tracks}",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
