from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tritrack.events.event import Event, EventError, Measurements, Particles, Truth
from tritrack.events.parquet import SCHEMA, event_file, read_events, write_event

SAMPLES = Path(__file__).parents[2] / "events" / "samples"


def _array(draw, dtype, *shape):
    return draw(npst.arrays(dtype, shape))


@st.composite
def events(draw):
    n, m = draw(st.integers(0, 20)), draw(st.integers(0, 5))
    ids = draw(st.lists(st.integers(1, 2**63 - 1), min_size=m, max_size=m, unique=True))
    truth = measurements = None
    if draw(st.booleans()):
        particles = Particles(
            particle_id=np.array(ids, dtype=np.int64),
            charge=_array(draw, np.float32, m),
            vertex=_array(draw, np.float32, m, 3),
            momentum=_array(draw, np.float32, m, 3),
            primary=_array(draw, np.bool_, m),
        )
        of_hit = draw(st.lists(st.sampled_from([0, *ids]), min_size=n, max_size=n))
        truth = Truth(
            particle_id=np.array(of_hit, dtype=np.int64),
            order=_array(draw, np.float32, n),
            particles=particles,
            weight=_array(draw, np.float32, n) if draw(st.booleans()) else None,
        )
    if draw(st.booleans()):
        measurements = Measurements(
            local=_array(draw, np.float32, n, 2), variance=_array(draw, np.float32, n, 2)
        )
    hit_ids = st.integers(-(2**63), 2**63 - 1)
    return Event(
        event_id=draw(st.integers(0, 2**63 - 1)),
        hits=_array(draw, np.float32, n, 3),
        hit_id=np.array(draw(st.lists(hit_ids, min_size=n, max_size=n, unique=True)), dtype=np.int64),
        modules=_array(draw, np.int32, n, 3),
        truth=truth,
        measurements=measurements,
    )


@settings(max_examples=60, deadline=None)
@given(event=events())
def test_an_event_comes_back_as_it_was_written(event, tmp_path_factory, assert_same):
    path = tmp_path_factory.mktemp("events") / "event.parquet"
    write_event(event, path)
    (back,) = read_events(path)
    assert_same(event, back)


def test_the_same_event_gives_the_same_bytes_and_nothing_else_stays(tmp_path, make_event):
    for name in ("a.parquet", "b.parquet", "b.parquet"):  # twice: a file is replaced
        write_event(make_event(), tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_file_of_several_rows_gives_several_events(tmp_path, make_event, assert_same):
    wanted = [make_event(3), make_event(4, full=False), make_event(5, n_hits=0), make_event(6, weight=True)]
    tables = []
    for event in wanted:
        write_event(event, tmp_path / "one.parquet")
        tables.append(pq.read_table(tmp_path / "one.parquet"))
    pq.write_table(pa.concat_tables(tables), tmp_path / "all.parquet")
    for event, back in zip(wanted, read_events(tmp_path / "all.parquet"), strict=True):
        assert_same(event, back)


def test_every_column_states_its_unit():
    assert all(field.metadata[b"unit"] and field.metadata[b"meaning"] for field in SCHEMA)
    assert SCHEMA.field("x").metadata[b"unit"] == b"mm"


def test_a_file_is_named_by_its_event():
    assert event_file(12) == "event000000012.parquet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hits": np.zeros((12, 3))}, "hits is float64"),
        ({"hits": np.zeros((12, 2), np.float32)}, r"hits is float32 \[12, 2\]"),
        ({"hit_id": np.arange(11)}, r"hit_id is int64 \[11\]"),
        ({"hit_id": np.array([5] * 12)}, "hit_id 5 occurs 12 times"),
        ({"modules": np.zeros((12, 3), np.int64)}, "modules is int64"),
    ],
)
def test_an_event_that_does_not_fit_together_is_not_written(tmp_path, make_event, change, message):
    event = dataclasses.replace(make_event(), **change)
    with pytest.raises(EventError, match=f"bad.parquet: event 7: {message}"):
        write_event(event, tmp_path / "bad.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "of_hits", "message"),
    [
        ([100, 100, 101], [100] * 12, "particle_id of the particles 100 occurs 2 times"),
        ([0, 100, 101], [100] * 12, "a particle has particle_id 0"),
        ([100, 101, 102], [100, 55] * 6, "1 particles of the hits are not among the particles, first 55"),
    ],
)
def test_particles_must_be_known_and_unique(tmp_path, make_event, ids, of_hits, message):
    event = make_event()
    particles = dataclasses.replace(event.truth.particles, particle_id=np.array(ids))
    truth = dataclasses.replace(event.truth, particle_id=np.array(of_hits), particles=particles)
    with pytest.raises(EventError, match=message):
        write_event(dataclasses.replace(event, truth=truth), tmp_path / "bad.parquet")


def _rewrite(path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def _set(table: pa.Table, name: str, values: list) -> pa.Table:
    kind = SCHEMA.field(name).type
    kind = pa.list_(kind.value_type) if pa.types.is_list(kind) else kind
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["y", "event_id"]), "columns are missing: event_id, y"),
        (
            lambda t: t.set_column(1, "x", pa.array([["a"]])),
            r"column x is list<.*string>, it should be list<float>",
        ),
        (lambda t: t.set_column(0, "event_id", pa.array(["7"])), "column event_id is string"),
        (lambda t: _set(t, "event_id", [None]), "an event has no event_id"),
        (lambda t: _set(t, "z", [[1.0, 2.0]]), "column z has 2 values, x has 12"),
        (lambda t: _set(t, "x", [None]), "column x is empty"),
        (lambda t: _set(t, "x", [[1.0] * 11 + [None]]), "column x has 1 missing values"),
        (lambda t: _set(t, "order", [[1.0]]), r"truth.order is float32 \[1\]"),
        (lambda t: _set(t, "hit_id", [[1] * 12]), "hit_id 1 occurs 12 times"),
        (lambda t: t.replace_schema_metadata({"tritrack_event_format": "9"}), "event format 9"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_so_is_its_fault(tmp_path, make_event, change, message):
    path = tmp_path / "bad.parquet"
    write_event(make_event(), path)
    _rewrite(path, change)
    with pytest.raises(EventError, match=f"bad.parquet: (event 7: )?{message}"):
        list(read_events(path))


def test_what_is_no_parquet_file_is_refused(tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_text("hit_id,x,y,z\n")
    with pytest.raises(EventError, match=r"bad\.parquet: cannot be read as Parquet"):
        list(read_events(path))
    with pytest.raises(EventError, match=r"gone\.parquet: no such file"):
        list(read_events(tmp_path / "gone.parquet"))


def test_the_sample_events_are_what_the_readme_says():
    files = sorted(SAMPLES.glob("*.parquet"))
    assert [file.name for file in files] == [event_file(i) for i in range(3)]
    assert sum(file.stat().st_size for file in files) < 4e6
    for file in files:
        (event,) = read_events(file)
        assert 15_000 < event.n_hits < 45_000
        assert np.isfinite(event.hits).all()
        particles = event.truth.particles
        hits_of = np.isin(event.truth.particle_id, particles.particle_id).mean()
        assert hits_of == 1  # clean events: no noise
        pt = np.hypot(*particles.momentum[:, :2].T)
        assert (particles.primary & (pt >= 1)).sum() > 100


def test_lists_with_wide_offsets_are_read(tmp_path, make_event, assert_same):
    path = tmp_path / "event.parquet"
    write_event(make_event(), path)

    def widen(table):
        lists = [field for field in SCHEMA if pa.types.is_list(field.type)]
        wide = {field.name: pa.large_list(field.type.value_type) for field in lists}
        return table.cast(
            pa.schema(
                [pa.field(name, wide.get(name, table.schema.field(name).type)) for name in table.column_names]
            )
        )

    _rewrite(path, widen)
    assert pq.read_schema(path).field("x").type == pa.large_list(pa.float32())
    (event,) = read_events(path)
    assert_same(event, make_event())


def test_positions_alone_make_an_event(tmp_path, make_event):
    event = make_event()
    path = tmp_path / "positions.parquet"
    write_event(event, path)
    _rewrite(path, lambda t: t.select(["event_id", "x", "y", "z"]))
    (found,) = read_events(path)
    np.testing.assert_array_equal(found.hits, event.hits)
    np.testing.assert_array_equal(found.hit_id, np.arange(event.n_hits))
    assert found.modules.shape == (event.n_hits, 3)
    assert found.truth is None
    assert found.measurements is None
