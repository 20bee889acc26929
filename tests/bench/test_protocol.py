from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import typer

for library in ("torch", "onnxscript", "acts", "pythia8mc"):
    pytest.importorskip(library)

from tritrack.bench import protocol
from tritrack.bench.event_sets import EVENT_SETS, EventSet, EventSetError, simulate_set
from tritrack.bench.machine import describe_machine
from tritrack.bench.protocol import MEASUREMENTS, Measurement, ProtocolError, chosen, is_current, run_protocol
from tritrack.bench.result import checkpoint_of, make_header
from tritrack.events.parquet import event_file, write_event
from tritrack.failures import UsageError
from tritrack.stages.card import read_card

LENGTHS = ("short", "full")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda each: each.name)
def test_what_is_run_takes_its_arguments(measurement, length, tmp_path):
    places = {name: tmp_path / name for name in ("events", "engines", "weights")}
    command = measurement.command(length, out=tmp_path / "out.json", places=places)
    app = typer.Typer()
    app.command()(import_module(command[2]).main)
    context = typer.main.get_command(app).make_context(measurement.name, command[3:])
    assert context.params["out"] == tmp_path / "out.json"
    there = {tmp_path / "events" / each.name for each in EVENT_SETS if each.n_events(length)}
    assert {Path(part) for part in command if Path(part).parent == tmp_path / "events"} <= there


def test_sets_and_measurements_have_names_of_their_own():
    for named in (EVENT_SETS, MEASUREMENTS):
        assert len({each.name for each in named}) == len(named)
    assert len({each.seed for each in EVENT_SETS}) == len(EVENT_SETS)
    assert all(each.short <= each.full for each in EVENT_SETS)
    assert any(each.guarded for each in MEASUREMENTS)


def test_a_name_that_is_none_is_refused():
    assert chosen(MEASUREMENTS, []) == list(MEASUREMENTS)
    assert [each.name for each in chosen(MEASUREMENTS, ["engines"])] == ["engines"]
    with pytest.raises(UsageError, match=r"--only: speed given, wanted is one of engines, service"):
        chosen(MEASUREMENTS, ["engines", "speed"])


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ({}, True),
        ({"card_sha256": "other"}, False),
        ({"cpu": "another"}, False),
        ({"cores": 1000}, False),
        ({"versions": {"python": "3.0"}}, False),
        ({"versions": {"python": "3.0", "no-such-package": "1"}}, False),
        ({"threads": 7}, True),
    ],
)
def test_a_result_is_current_on_the_same_model_versions_and_processor(change, current, small_weights):
    card = read_card(small_weights)
    header = make_header("sizes", card=card, working_point=None, threads=1, packages=["numpy"])
    assert header.cpu == describe_machine()["cpu"]
    assert is_current(replace(header, **change), card=card) is current


@pytest.mark.slow
def test_events_of_a_set_are_simulated_once(tmp_path):
    few = EventSet(name="few", pileup=0, seed=1, short=1, full=2)
    assert simulate_set(few, tmp_path / "few", n_events=1, jobs=1) == 1
    first = (tmp_path / "few" / event_file(0)).stat().st_mtime_ns
    assert simulate_set(few, tmp_path / "few", n_events=2, jobs=1) == 1
    assert simulate_set(few, tmp_path / "few", n_events=1, jobs=1) == 0
    assert (tmp_path / "few" / event_file(0)).stat().st_mtime_ns == first
    with pytest.raises(EventSetError, match="not an event of the set few"):
        simulate_set(replace(few, seed=2), tmp_path / "few", n_events=1, jobs=1)


def test_no_events_are_simulated_where_none_are_wanted(tmp_path):
    few = EventSet(name="few", pileup=0, seed=1, short=0, full=2)
    assert simulate_set(few, tmp_path / "few", n_events=0, jobs=1) == 0
    assert not (tmp_path / "few").exists()


@pytest.mark.slow
def test_a_protocol_goes_on_after_a_failure_and_where_it_was(
    small_weights, small_event, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(protocol, "EVENT_SETS", ())
    work, out = tmp_path / "work", tmp_path / "out"
    events = work / "events" / "short"
    (events / "few").mkdir(parents=True)
    write_event(small_event, events / "few" / event_file(0))
    arguments = ("{events}/few", "--engines", "{engines}", "--weights", "{weights}", "--rounds", "1")
    broken = Measurement(name="precision", short=("{events}/none",), full=())
    sound = Measurement(name="floors", short=arguments, full=())

    def run(*measurements, again=False):
        run_protocol("short", measurements, out=out, work=work, weights=small_weights, again=again)

    with pytest.raises(ProtocolError, match=r"^failed: precision \(see .*short-precision\.log\)$"):
        run(broken, sound)
    said = capfd.readouterr().out
    assert f"tritrack: {events}/none: no such file or folder" in said
    assert f"{events}/none" in (work / "logs" / "short-precision.log").read_text().splitlines()[0]
    written = (out / "short" / "floors.json").stat().st_mtime_ns
    shutil.rmtree(work / "engines")
    run(sound)
    assert "there already" in capfd.readouterr().out
    assert (out / "short" / "floors.json").stat().st_mtime_ns == written
    assert not (work / "engines").exists()
    kept = checkpoint_of(out / "short" / "floors.json")
    kept.write_text("what a stopped run left")
    run(sound, again=True)
    assert not kept.exists()
    assert (out / "short" / "floors.json").stat().st_mtime_ns > written
