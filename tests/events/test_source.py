from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tritrack.events.event import EventError
from tritrack.events.parquet import event_file, write_event
from tritrack.events.source import check_numbers, find_files, read_all

CSV = "hit_id,x,y,z,volume_id,layer_id,module_id\n100,1,2,3,8,2,1\n"


def _trackml(folder, number: int, *, compressed: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"event{number:09d}-hits.csv{'.gz' if compressed else ''}"
    if compressed:
        path.write_bytes(gzip.compress(CSV.encode()))
    else:
        path.write_text(CSV)


@pytest.fixture
def mixed(tmp_path, make_event):
    """Files of both kinds, written out of order, among other things."""
    for number in (5, 2, 11):
        write_event(make_event(number), tmp_path / event_file(number))
    _trackml(tmp_path, 3)
    _trackml(tmp_path, 7, compressed=True)
    (tmp_path / "tracks.parquet").write_text("no event")
    (tmp_path / "event000000003-truth-notes.txt").write_text("no event")
    (tmp_path / "deeper").mkdir()
    return tmp_path


def test_a_folder_gives_its_events_in_order(mixed):
    assert [event.event_id for event in read_all([mixed])] == [2, 3, 5, 7, 11]


def test_paths_are_read_in_the_order_given(mixed):
    paths = [mixed / event_file(11), mixed / "event000000003-hits.csv", mixed / event_file(2)]
    assert [event.event_id for event in read_all(paths)] == [11, 3, 2]


def test_events_of_one_number_are_refused(mixed, tmp_path, make_event):
    assert check_numbers([mixed]) == [2, 3, 5, 7, 11]
    again = mixed / "deeper" / "others.parquet"
    write_event(make_event(7), again)
    for other, first in ((again, "event000000007-hits.csv.gz"), (mixed / event_file(5), event_file(5))):
        with pytest.raises(EventError, match=rf"{other}: event \d is in .*{first} as well"):
            check_numbers([mixed, other])
    with pytest.raises(EventError, match="no such file or folder"):
        check_numbers([mixed / "gone"])


def test_events_are_read_one_at_a_time(mixed):
    (mixed / event_file(11)).write_text("broken")
    events = read_all([mixed])
    assert [next(events).event_id for _ in range(4)] == [2, 3, 5, 7]
    with pytest.raises(EventError, match=r"event000000011\.parquet"):
        next(events)


def test_what_is_no_event_file_is_refused(mixed):
    (mixed / "event1.root").write_text("")
    for name, message in (
        ("gone", "no such file or folder"),
        ("deeper", "no events there"),
        ("event1.root", "not an event file"),
        ("event000000003-truth-notes.txt", "not an event file"),
    ):
        with pytest.raises(EventError, match=f"{name}: {message}"):
            find_files([mixed / name])
    with pytest.raises(EventError, match="no events given"):
        find_files([])


def test_an_event_both_plain_and_compressed_is_refused(tmp_path):
    _trackml(tmp_path, 3)
    _trackml(tmp_path, 3, compressed=True)
    with pytest.raises(EventError, match=r"event000000003-hits\.csv lies there both plain and compressed"):
        find_files([tmp_path])


def test_truth_that_is_not_wanted_is_not_looked_at(tmp_path, make_event):
    table = tmp_path / "event000000007.parquet"
    write_event(make_event(), table)
    whole = pq.read_table(table)
    place = whole.column_names.index("particle_id")
    pq.write_table(whole.set_column(place, "particle_id", pa.array(["?"])), table)
    csv = tmp_path / "event000000008-hits.csv"
    csv.write_text("hit_id,x,y,z,volume_id,layer_id,module_id\n1,30,0,10,8,2,11\n")
    csv.with_name("event000000008-truth.csv").write_text("no truth\n")
    for path in (table, csv):
        with pytest.raises(EventError):
            list(read_all([path]))
        assert check_numbers([path]) in ([7], [8])
        (event,) = read_all([path], truth=False)
        assert event.truth is None
        assert event.n_hits > 0
