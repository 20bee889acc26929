"""The options of the commands that speak to a server: TLS and headers."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numba")  # the small server serves rules as well

TOKEN = "Bearer a.b=c"
HEADER = ("--header", f"Authorization={TOKEN}", "--header", "x-vo=atlas")


@pytest.mark.parametrize("command", ["find", "load", "info"])
def test_every_command_speaks_as_it_is_told(run, small_server, certificate, event_folder, tmp_path, command):
    server = small_server("track_finder", "track_fit", certificate=certificate)
    arguments = {
        "find": ("find", event_folder, "--out", tmp_path / "t.parquet", "--fitted", tmp_path / "f.parquet"),
        "load": (
            "load",
            "--events",
            event_folder,
            "--out",
            tmp_path / "l.json",
            "--concurrency",
            1,
            "--requests",
            2,
        ),
        "info": ("info", "--json"),
    }[command]
    result = run(*arguments, "--url", server.url, "--tls-ca", certificate, *HEADER)
    assert result.code == 0, result.err
    assert server.calls
    for call in server.calls:
        assert (call.headers["authorization"], call.headers["x-vo"]) == (TOKEN, "atlas")
    if command == "info":
        assert json.loads(result.out)["server model"] == "track_finder"
    if command == "find":
        assert {call.request_id for call in server.calls if call.name == "ModelInfer"} == {
            "event 100",
            "event 101",
        }


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--header", "secret"), 2, "tritrack: --header: NAME=VALUE wanted, a text without '=' given"),
        (("--header", "a b=c"), 2, "tritrack: --header: header 'a b': letters, digits"),
        (("--tls-ca", "none.pem"), 1, "tritrack: [Errno 2] No such file or directory: 'none.pem'"),
        (("--tls-ca", __file__), 1, f"tritrack: {__file__}: holds no certificates in PEM"),
    ],
)
def test_what_cannot_be_sent_is_said(run, options, code, sentence):
    result = run("info", "--url", "127.0.0.1:1", *options)
    assert result.code == code
    assert result.err.startswith(sentence)
    assert len(result.err.splitlines()) == 1
