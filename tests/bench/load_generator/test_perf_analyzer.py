from __future__ import annotations

import base64
import json

import numpy as np

from tritrack.bench.load_generator.perf_analyzer import write_input


def test_the_file_holds_the_events(tmp_path):
    rng = np.random.default_rng(1)
    events = [rng.normal(size=(n_hits, 3)).astype(np.float32) for n_hits in (5, 0, 2)]
    events.append(np.asfortranarray(events[0]))
    events.append(np.repeat(events[0], 2, axis=0)[::2])
    write_input(events, tmp_path / "new" / "input.json")
    entries = json.loads((tmp_path / "new" / "input.json").read_text())["data"]
    assert len(entries) == len(events)
    for entry, hits in zip(entries, events, strict=True):
        assert list(entry) == ["HITS"]
        assert set(entry["HITS"]) == {"content", "shape"}
        assert list(entry["HITS"]["content"]) == ["b64"]
        content = base64.b64decode(entry["HITS"]["content"]["b64"], validate=True)
        np.testing.assert_array_equal(np.frombuffer(content, "<f4").reshape(entry["HITS"]["shape"]), hits)
