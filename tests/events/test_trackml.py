from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from tritrack.events.event import EventError
from tritrack.events.trackml import is_hits_file, read_trackml

# Particle 900 comes from (0, 0, 10) outwards, 901 from a decay at x = 40; hit 103 is noise. The truth is in
# another order than the hits.
HITS = """hit_id,x,y,z,volume_id,layer_id,module_id
102,90,0,10,8,6,33
101,30,0,10,8,2,11
103,5,5,5,7,4,1
104,70,0,0,8,4,22
"""
TRUTH = """hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight
101,900,30,0,10,1,0,0,0.5
102,900,90,0,10,1,0,0,0.25
103,0,5,5,5,0,0,0,0
104,901,70,40,0,1,1,0,0.125
"""
PARTICLES = """particle_id,particle_type,vx,vy,vz,px,py,pz,q,nhits
901,211,40,0,0,1,1,0,-1,1
900,13,0,0,10,2,0,0,1,2
"""


def _write(folder: Path, *, compressed: bool = False, **texts: str | None) -> Path:
    for name, text in {"hits": HITS, "truth": TRUTH, "particles": PARTICLES, **texts}.items():
        if text is not None:
            path = folder / f"event000000042-{name}.csv"
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
            else:
                path.write_text(text)
    return folder / f"event000000042-hits.csv{'.gz' if compressed else ''}"


@pytest.mark.parametrize("compressed", [False, True])
def test_an_event_with_truth(tmp_path, compressed):
    event = read_trackml(_write(tmp_path, compressed=compressed))
    assert event.event_id == 42
    assert event.measurements is None
    np.testing.assert_array_equal(event.hit_id, [102, 101, 103, 104])
    np.testing.assert_array_equal(event.hits[0], np.float32([90, 0, 10]))
    np.testing.assert_array_equal(event.modules[0], [8, 6, 33])
    truth = event.truth
    np.testing.assert_array_equal(truth.particle_id, [900, 900, 0, 901])
    np.testing.assert_allclose(truth.order, [90, 30, 0, 50])  # from each one's own vertex
    np.testing.assert_allclose(truth.weight, [0.25, 0.5, 0, 0.125])
    np.testing.assert_array_equal(truth.particles.particle_id, [901, 900])
    np.testing.assert_array_equal(truth.particles.charge, [-1, 1])
    np.testing.assert_array_equal(truth.particles.vertex[0], [40, 0, 0])
    np.testing.assert_array_equal(truth.particles.momentum[1], [2, 0, 0])
    np.testing.assert_array_equal(truth.particles.primary, [False, True])


def test_hits_alone_have_no_truth(tmp_path):
    path = _write(tmp_path, truth=None)
    assert read_trackml(path).truth is None
    path.with_name("event000000042-particles.csv").unlink()
    assert read_trackml(path).truth is None


def test_an_empty_event(tmp_path):
    first_line = {name: text.split("\n")[0] + "\n" for name, text in (("hits", HITS), ("truth", TRUTH))}
    event = read_trackml(_write(tmp_path, **first_line, particles=PARTICLES.split("\n")[0] + "\n"))
    assert event.n_hits == 0
    assert len(event.truth.particles.charge) == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"particles": None}, r"42-truth.csv: there is truth but no particles file"),
        ({"hits": HITS.replace("volume_id", "v")}, r"42-hits.csv: .*volume_id"),
        ({"hits": HITS.replace("90,0", "ninety,0")}, r"42-hits.csv: .*ninety"),
        ({"hits": HITS.replace("90,0", ",0")}, r"42-hits.csv: column x has 1 missing values"),
        ({"hits": HITS + "105,1\n"}, r"42-hits.csv: cannot be read"),
        ({"hits": ""}, r"42-hits.csv: cannot be read"),
        ({"hits": HITS + "105,1,1,1,8,2,1\n"}, r"42-truth.csv: its hit_id are not those .*4 rows, 5 hits"),
        ({"truth": TRUTH.replace("104,", "105,")}, r"42-truth.csv: its hit_id are not those"),
        ({"hits": HITS.replace("101,", "102,")}, r"42-truth.csv: its hit_id are not those"),
        ({"truth": None, "hits": HITS.replace("101,", "102,")}, r"hit_id 102 occurs 2 times"),
        ({"truth": TRUTH.replace("901", "950")}, r"1 particles of the hits .* first 950"),
        ({"particles": PARTICLES.replace("901", "900")}, r"900 occurs 2 times"),
    ],
)
def test_a_bad_file_is_named(tmp_path, texts, message):
    with pytest.raises(EventError, match=message):
        read_trackml(_write(tmp_path, **texts))


def test_a_broken_gzip_file_is_named(tmp_path):
    path = tmp_path / "event1-hits.csv.gz"
    path.write_bytes(gzip.compress(HITS.encode())[:40])
    with pytest.raises(EventError, match=r"event1-hits.csv.gz: cannot be read"):
        read_trackml(path)


def test_other_names_are_refused(tmp_path):
    for name in ("hits.csv", "event1-truth.csv", "event1-hits.csv.bz2", "eventx-hits.csv"):
        assert not is_hits_file(tmp_path / name)
        with pytest.raises(EventError, match="not named like a TrackML hits file"):
            read_trackml(tmp_path / name)
    with pytest.raises(EventError, match="no such file"):
        read_trackml(tmp_path / "event1-hits.csv")


def test_a_real_event():
    folder = os.environ.get("TRACKML_DIR")
    if not folder:
        pytest.skip("TRACKML_DIR is not set")
    files = sorted(path for path in Path(folder).iterdir() if is_hits_file(path))
    event = read_trackml(files[0])
    truth = event.truth
    assert event.n_hits > 1000
    assert np.abs(event.hits[:, 2]).max() < 3100
    assert np.hypot(*event.hits[:, :2].T).max() < 1100
    assert 0 < (truth.particle_id == 0).mean() < 0.5
    assert truth.particles.primary.mean() > 0.5
    # Along a primary particle's path, the distance from the beam line grows with the order, nearly always.
    row = np.lexsort((truth.order, truth.particle_id))
    kept = np.isin(truth.particle_id[row], truth.particles.particle_id[truth.particles.primary])
    same = (np.diff(truth.particle_id[row]) == 0) & kept[1:]
    outward = np.diff(np.linalg.norm(event.hits[row], axis=1)) > 0
    assert outward[same].mean() > 0.95
