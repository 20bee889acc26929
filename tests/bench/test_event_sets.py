import shutil

import pytest

from tritrack.bench.event_sets import for_each, name_of, read_sets
from tritrack.events.event import EventError
from tritrack.events.parquet import event_file, write_event
from tritrack.failures import UsageError


@pytest.fixture
def folder(small_event, tmp_path):
    for name in ("a/few", "b/few", "b/more"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(3):
            write_event(small_event, tmp_path / name / event_file(number))
    (tmp_path / "none").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("first", "n_events"), [((), [3, 3]), ((2,), [2, 2]), ((1, 2), [1, 2]), ((5,), [3, 3])]
)
def test_the_first_events_of_each_set(folder, first, n_events):
    sets = read_sets([folder / "a" / "few", folder / "b" / "more"], first=first)
    assert {name: len(events) for name, events in sets.items()} == dict(
        zip(("few", "more"), n_events, strict=True)
    )


def test_more_numbers_than_sets_are_refused():
    with pytest.raises(UsageError, match=r"1 2 3: 3 numbers given for 2 sets of events"):
        for_each([1, 2, 3], 2)


def test_a_set_has_the_name_of_its_folder(folder):
    for name in ("pu0.5", "pu0.7"):
        shutil.copytree(folder / "a" / "few", folder / name)
    assert list(read_sets([folder / "pu0.5", folder / "pu0.7"])) == ["pu0.5", "pu0.7"]
    assert name_of(folder / "a" / "few" / event_file(0)) == "event000000000"


def test_two_sets_of_one_name_are_refused(folder):
    with pytest.raises(UsageError, match=r"b/few: another set is called few, too"):
        read_sets([folder / "a" / "few", folder / "b" / "few"])


def test_a_set_without_events_is_refused(folder):
    with pytest.raises((UsageError, EventError), match="none: no "):
        read_sets([folder / "none"])
