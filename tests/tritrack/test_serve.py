"""``tritrack serve`` as a user runs it, and the commands that talk to it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tritrack.events.tracks import read_tracks
from tritrack.stages.card import read_card
from tritrack.stages.contract import CONTRACT_VERSION
from tritrack.stages.pipeline import Pipeline

SHIPPED = Path(__file__).parents[2] / "weights" / "default"


@pytest.fixture
def serving(run, small_engines, rules_folder, tmp_path):
    """A ``tritrack serve`` in a process of its own, and its gRPC HOST:PORT."""
    pytest.importorskip("pytriton", reason="needs the server extra (nvidia-pytriton)")
    rules = ("--rules", rules_folder)
    assert run("repository", "--engines", small_engines, *rules, "--out", tmp_path / "repository").code == 0
    process = subprocess.Popen(
        [
            # Started from a script's background job, this process ignores Ctrl-C, and its children would too.
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "tritrack",
            "serve",
            tmp_path / "repository",
            "--log",
            tmp_path / "server.log",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("tritonserver from ")
            ready = process.stdout.readline()
            match = re.match(r"ready: gRPC (\S+), HTTP \S+, metrics \S+$", ready)
            assert match, ready + process.stdout.read()
            yield process, match[1]
        finally:
            process.kill()  # does nothing to one that has ended


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve(run, serving, events, event_folder, small_engines, rules_folder, tmp_path, stop):
    process, url = serving
    served, local = tmp_path / "served.parquet", tmp_path / "local.parquet"
    found = run("find", event_folder, "--url", url, "--out", served)
    assert found.code == 0, found.err
    assert run("find", event_folder, "--local", "--engines", small_engines, "--out", local).code == 0
    assert pq.read_table(served).equals(pq.read_table(local))
    found = run("find", event_folder, "--url", url, "--out", served, "--pack-hits", 5000)
    assert found.code == 0, found.err
    assert pq.read_table(served).equals(pq.read_table(local))
    found = run("find", event_folder, "--url", url, "--out", served, "--working-point", "best")
    assert found.code == 0, found.err
    chain = Pipeline.load(small_engines, threads=2, working_point="best")
    for event in events:
        np.testing.assert_array_equal(read_tracks(served).labels_for(event), chain.find(event.hits))

    rules, fits = ("--rules", rules_folder), {}
    for way, options in {
        "served": ("--url", url),
        "local": ("--local", *rules, "--engines", small_engines),
        "served by rules": ("--url", url, "--model", "rule_finder"),
        "local by rules": ("--local", *rules, "--finder", "rules"),
    }.items():
        fitted = tmp_path / f"{way}.fitted.parquet"
        found = run("find", event_folder, *options, "--out", served, "--fitted", fitted)
        assert found.code == 0, found.err
        fits[way] = fitted.read_bytes()
    assert fits["served"] == fits["local"] != fits["served by rules"] == fits["local by rules"]

    facts = json.loads(run("info", "--url", url, "--json").out)
    assert facts["server"] == url
    assert facts["server contract version"] == CONTRACT_VERSION
    assert facts["this client fits"] is True
    assert facts["server card sha256"] == read_card(small_engines).hash
    assert facts["server default working point"] == "balanced"
    assert facts["server working points"]["best"] == {
        "model": "track_finder_best",
        "metrics": {"drawn": {"efficiency": 0.5}},
    }
    assert run("info", "--url", url).code == 0

    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(stop)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "stopped\n"
    assert not any(child.is_running() for child in family)


ENDS_BY_ITSELF = """\
#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

options = dict(word.split("=", 1) for word in sys.argv if "=" in word)


class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(options["--id"].encode())


with HTTPServer(("127.0.0.1", int(options["--http-port"])), Ready) as server:
    server.handle_request()
    server.handle_request()
print('E1123 08:31:11.498040 68 main.cc:245] "the GPU has fallen off the bus"')
sys.exit(3)
"""


def test_a_server_that_ends_by_itself_says_why(run, tmp_path):
    (tmp_path / "repository" / "gnn" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "gnn" / "config.pbtxt").touch()
    shutil.copy(SHIPPED / "card.json", tmp_path / "repository" / "gnn" / "1")
    program = tmp_path / "tritonserver"
    program.write_text(ENDS_BY_ITSELF.format(python=sys.executable))
    program.chmod(0o755)
    before = signal.getsignal(signal.SIGTERM)
    try:
        served = run("serve", tmp_path / "repository", "--tritonserver", program)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert served.code == 1
    assert "\nready: gRPC " in served.out
    assert (
        served.err == "tritrack: the server ended by itself with status 3: the GPU has fallen off the bus\n"
    )
