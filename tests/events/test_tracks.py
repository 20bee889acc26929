from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritrack.events.event import EventError
from tritrack.events.parquet import read_metadata
from tritrack.events.tracks import check_track_file, read_tracks, write_tracks

ENDINGS = pytest.mark.parametrize("ending", ["parquet", "csv"])


@ENDINGS
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_labels_come_back_in_the_order_of_the_events_hits(ending, data, tmp_path_factory, make_event):
    path = tmp_path_factory.mktemp("tracks") / f"tracks.{ending}"
    events = [make_event(i, n_hits=data.draw(st.integers(0, 30))) for i in (9, 2, 5)]
    wanted = [
        np.array(data.draw(st.lists(st.integers(-1, 2**40), min_size=e.n_hits, max_size=e.n_hits)), np.int64)
        for e in events
    ]
    with write_tracks(path) as writer:
        for event, labels in zip(events, wanted, strict=True):
            writer.add(event, labels)
    tracks = read_tracks(path)
    for event, labels in zip(events, wanted, strict=True):
        back = tracks.labels_for(event)
        assert back.dtype == np.int64
        np.testing.assert_array_equal(back, labels)
    np.testing.assert_array_equal(tracks.event_ids, sorted(e.event_id for e in events if e.n_hits))


def test_the_columns_of_both_kinds_of_file(tmp_path, make_event):
    event = make_event(7, n_hits=3)
    for ending in ("parquet", "csv"):
        with write_tracks(tmp_path / "new" / f"tracks.{ending}") as writer:
            writer.add(event, np.array([4, -1, 0]))
    table = pq.read_table(tmp_path / "new" / "tracks.parquet")
    assert table.to_pydict() == {
        "event_id": [7] * 3,
        "hit_id": event.hit_id.tolist(),
        "track_label": [4, -1, 0],
    }
    lines = (tmp_path / "new" / "tracks.csv").read_text().split("\n")
    assert [line.replace('"', "") for line in lines] == [
        "event_id,hit_id,track_id",
        *(f"7,{h},{t}" for h, t in zip(event.hit_id, (5, 0, 1), strict=True)),
        "",
    ]


def test_a_file_says_what_found_its_tracks(tmp_path, make_event):
    origin = {"tritrack_finder": "chain", "tritrack_card": "dichte Ereignisse, \N{GREEK SMALL LETTER MU}"}
    with write_tracks(tmp_path / "t.parquet", metadata=origin) as writer:
        writer.add(make_event(), np.zeros(12, np.int64))
    assert read_metadata(tmp_path / "t.parquet") == origin
    assert not read_tracks(tmp_path / "t.parquet").labels_for(make_event()).any()
    for ending, metadata in (("parquet", None), ("csv", None), ("csv", origin)):
        with write_tracks(tmp_path / f"{metadata is None}.{ending}", metadata=metadata) as writer:
            writer.add(make_event(), np.zeros(12, np.int64))
    assert read_metadata(tmp_path / "True.parquet") == {}
    assert (tmp_path / "True.csv").read_bytes() == (tmp_path / "False.csv").read_bytes()


@ENDINGS
def test_after_an_error_there_is_no_file(tmp_path, make_event, ending):
    event = make_event()
    labels = np.zeros(event.n_hits, np.int64)

    def fail() -> None:
        with write_tracks(tmp_path / f"tracks.{ending}") as writer:
            writer.add(event, labels)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@ENDINGS
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(11, np.int64), r"labels are int64 \[11\], wanted is int64 \[12\]"),
        (np.zeros(12, np.int32), "labels are int32"),
        (np.full(12, -2), "a label is -2"),
    ],
)
def test_bad_labels_are_not_written(tmp_path, make_event, ending, labels, message):
    with (
        write_tracks(tmp_path / f"t.{ending}") as writer,
        pytest.raises(EventError, match=f"t.{ending}: event 7: {message}"),
    ):
        writer.add(make_event(7), labels)


@ENDINGS
def test_an_event_is_written_once(tmp_path, make_event, ending):
    labels = np.zeros(12, np.int64)
    with write_tracks(tmp_path / f"t.{ending}") as writer:
        writer.add(make_event(7), labels)
        with pytest.raises(EventError, match="event 7: written already"):
            writer.add(make_event(7), labels)


@pytest.mark.parametrize(
    ("hit_id", "message"),
    [
        ([100, 101], "1 hits are missing, first hit_id 102"),
        ([100, 101, 102, 103], "1 hits are not the event's, first hit_id 103"),
        ([100, 101, 102, 102], "1 hits occur more than once, first hit_id 102"),
        ([], "the file has no hits of this event"),
    ],
)
def test_a_file_must_hold_the_events_hits(tmp_path, make_event, hit_id, message):
    n = len(hit_id) + 1
    columns = {"event_id": [7] * (n - 1) + [8], "hit_id": [*hit_id, 1], "track_label": [0] * n}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(EventError, match=rf"t\.parquet: event 7: {message}"):
        read_tracks(tmp_path / "t.parquet").labels_for(make_event(7, n_hits=3))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "event_id,hit_id,track_id\n1,1,-1\n", "a track_id is below 0"),
        ("t.csv", "event_id,hit_id\n1,1\n", "column track_id is missing"),
        ("t.csv", "event_id,hit_id,track_id\n1,1,one\n", "cannot be read as a track file"),
        (
            "t.csv",
            "event_id,hit_id,track_id\n1,1,\n",
            "column track_id is int64, wanted is int64 without gaps",
        ),
        ("t.csv", "", "cannot be read as a track file"),
        ("t.parquet", "event_id,hit_id,track_label\n", "cannot be read as a track file"),
        ("t.txt", "", r"a track file ends in \.parquet or \.csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(EventError, match=f"{name}: {message}"):
        read_tracks(tmp_path / name)


def test_a_parquet_file_with_other_columns_is_named(tmp_path):
    columns = {"event_id": [1], "hit_id": [1.5], "track_label": [-2]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(EventError, match="column hit_id is double"):
        read_tracks(tmp_path / "t.parquet")
    pq.write_table(pa.table(columns | {"hit_id": [1]}), tmp_path / "t.parquet")
    with pytest.raises(EventError, match="a track_label is below -1"):
        read_tracks(tmp_path / "t.parquet")
    with pytest.raises(EventError, match=r"gone\.csv: no such file"):
        read_tracks(tmp_path / "gone.csv")


def test_the_ending_is_checked_before_any_work(tmp_path):
    assert check_track_file(tmp_path / "t.csv") == tmp_path / "t.csv"
    with pytest.raises(EventError, match="root: a track file ends in"), write_tracks(tmp_path / "t.root"):
        pass
