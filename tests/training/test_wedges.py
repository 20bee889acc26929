"""Events on disk, cut into wedges."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tritrack.events.event import EventError
from tritrack.events.parquet import event_file, write_event
from tritrack.training import wedges
from tritrack.training.sample import make_sample, path_pairs
from tritrack.training.wedges import cut_wedges, event_files, make_wedges, read_event, read_wedge

FIELDS = ("hits", "particle", "rank", "weight")


@pytest.mark.parametrize("start", [-4.0, 0.0, 3.0, 7.0])
@pytest.mark.parametrize("n_wedges", [1, 2, 5])
def test_every_hit_is_in_one_wedge(helices, start, n_wedges):
    whole = make_sample(helices(1, n_particles=40))
    parts = cut_wedges(whole, start=start, n_wedges=n_wedges)
    assert len(parts) == n_wedges
    for name in FIELDS:
        together = np.concatenate([getattr(part, name) for part in parts])
        assert together.dtype == getattr(whole, name).dtype
        assert sorted(together.tolist()) == sorted(getattr(whole, name).tolist())
    for number, part in enumerate(parts):
        middle = start + (number + 0.5) * 2 * np.pi / n_wedges
        phi = np.arctan2(part.hits[:, 1], part.hits[:, 0])
        assert (np.abs(np.angle(np.exp(1j * (phi - middle)))) <= np.pi / n_wedges + 1e-6).all()


def test_a_hit_in_another_wedge_is_a_gap(helices):
    whole = make_sample(helices(1, n_particles=40))
    parts = cut_wedges(whole, start=0.0, n_wedges=6)
    for gap in (1, 2):
        pairs = path_pairs(whole, gap=gap)
        wedge = np.floor(np.arctan2(whole.hits[:, 1], whole.hits[:, 0]) / (2 * np.pi) % 1 * 6)
        within = np.count_nonzero(wedge[pairs[0]] == wedge[pairs[1]])
        assert sum(path_pairs(part, gap=gap).shape[1] for part in parts) == within


def test_no_hits(helices):
    parts = cut_wedges(make_sample(helices(1, n_particles=0, n_noise=0)), start=0.0, n_wedges=2)
    assert [part.hits.shape for part in parts] == [(0, 3)] * 2


@pytest.fixture
def folder(tmp_path, helices):
    for event_id in (102, 100, 101):
        write_event(helices(event_id, n_particles=6), tmp_path / event_file(event_id))
    return tmp_path


def test_wedges_on_disk(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(wedges, "WEDGE_HITS", 25)  # of 70 hits
    files, seen = event_files(folder), []
    assert [path.name for path in files] == [event_file(i) for i in (100, 101, 102)]
    made = make_wedges(files, tmp_path / "wedges", on_event=lambda: seen.append(1))
    assert len(made) == 3 * 3
    assert len(seen) == 3
    for number, path in enumerate(files):
        parts = [read_wedge(file) for file in made[3 * number : 3 * number + 3]]
        whole = make_sample(read_event(path))
        for name in FIELDS:
            together = np.concatenate([getattr(part, name) for part in parts])
            assert sorted(together.tolist()) == sorted(getattr(whole, name).tolist())
    before = [file.stat().st_mtime_ns for file in made]
    assert make_wedges(files, tmp_path / "wedges", on_event=lambda: None) == made
    assert [file.stat().st_mtime_ns for file in made] == before


def test_an_event_half_cut_is_cut_again(folder, tmp_path, monkeypatch):
    files = event_files(folder)[:1]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wedges.np, "savez", stop)
        with pytest.raises(KeyboardInterrupt):
            make_wedges(files, tmp_path / "wedges", on_event=lambda: None)
    made = make_wedges(files, tmp_path / "wedges", on_event=lambda: None)
    assert len(read_wedge(made[0]).hits) == 70
    assert [path.name for path in (tmp_path / "wedges").iterdir()] == ["00000"]


def test_no_event_files(tmp_path):
    with pytest.raises(EventError, match="no Parquet events there"):
        event_files(tmp_path)


def test_several_events_in_a_file(folder):
    path = folder / event_file(100)
    with pq.ParquetFile(path) as file:
        table = file.read()
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(EventError, match=rf"{path.name}: holds 2 events"):
        read_event(path)
