from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
pytest.importorskip("onnxruntime")

from tritrack.bench.gpu import (
    OtherTracksError,
    Tracks,
    compare_tracks,
    require_same_tracks,
    time_device_chain,
    time_device_stages,
)
from tritrack.bench.stages import CHAIN
from tritrack.stages.contract import EDGE_INDEX, FILTER_STAGE, GRAPH_STAGE, STAGES
from tritrack.stages.pipeline import Pipeline


def test_each_stage_on_a_device_is_timed(small_engines, small_event):
    pipeline = Pipeline.load(small_engines, threads=1).at("fast")
    rows = time_device_stages(pipeline, small_event, device="cpu", repeats=2)
    assert [row.stage for row in rows] == ["graph on cpu", "labelling on cpu"]
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert rows[0].n_edges is not None
    assert rows[0].n_edges > 0


def test_the_chain_on_a_device_is_timed(small_engines, small_event):
    there = Pipeline.load(small_engines, threads=1, device="cpu")
    rows = time_device_chain(there, small_event, repeats=2)
    # Torch's tensors on the CPU stand for a GPU's; ONNX Runtime takes the host's.
    on_device = {GRAPH_STAGE, FILTER_STAGE}
    assert [row.stage for row in rows] == [
        *(f"{spec.name}, device chain, on {'cpu' if spec in on_device else 'the host'}" for spec in STAGES),
        f"{CHAIN}, device chain",
    ]
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert [row.n_edges is None for row in rows] == [
        *(spec.outputs != (EDGE_INDEX,) for spec in STAGES),
        True,
    ]


def test_other_tracks_on_a_device_are_a_failure(small_engines, small_event):
    """Another working point stands for a device that computes wrongly."""
    here, there = (Pipeline.load(small_engines, threads=1, device=device) for device in (None, "cpu"))
    same = compare_tracks(here, there, small_event)
    assert same == Tracks(
        event_id=small_event.event_id, n_hits=small_event.n_hits, n_tracks=same.n_tracks, other=0.0
    )
    assert same.n_tracks > 5
    require_same_tracks([same])
    other = compare_tracks(here, there.at("fast"), small_event)
    with pytest.raises(
        OtherTracksError, match=r"% of the tracks are others on the GPU than on the host, 0\.1% may"
    ):
        require_same_tracks([same, other])


@pytest.mark.slow
def test_without_a_gpu_it_says_so(small_engines, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "results"
    command = ["-m", "tritrack.bench.gpu", "--engines", small_engines, "--out", out, tmp_path]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tritrack: bench.gpu: there is no GPU here, or torch cannot use it\n"
    assert not out.exists()
