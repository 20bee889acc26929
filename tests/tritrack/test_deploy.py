"""What deploy/ and the Makefile say of NVIDIA's image agrees with the code, and a missing docker is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tritrack.ensemble_repo.images import PINNED
from tritrack.ensemble_repo.plan import IN_FLIGHT
from tritrack.service.installation import SETTINGS
from tritrack.service.repository import STEP_SHM, gpu_memory_at_limits, shared_memory_at_limits
from tritrack.stages.card import read_card
from tritrack.stages.contract import NATIVE_STEPS
from tritrack.stages.plan_file import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("deploy/Dockerfile", r"^ARG TRITON_TAG=(\S+)$"),
        ("deploy/compose.yaml", r"\$\{TRITON_TAG:-([^}]+)\}"),
        ("deploy/compose.gpu.yaml", r"\$\{TRITON_TAG:-([^}]+)\}"),
        ("Makefile", r"^TRITON_TAG := (\S+)$"),
        ("docs/containers.md", r"nvcr\.io/nvidia/tritonserver:(\S+)-py3"),
    ],
)
def test_one_image_is_pinned(file: str, pattern: str) -> None:
    assert set(re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)) == {PINNED}


def test_shared_memory_does_for_an_event_at_the_limits() -> None:
    (size,) = re.findall(r"^ +shm_size: (\d+)gb$", COMPOSE, re.MULTILINE)
    steps = 20 * STEP_SHM  # more than there are
    at_limits = shared_memory_at_limits(read_card(ROOT / "weights" / "default"), NATIVE_STEPS)
    assert at_limits + steps <= int(size) << 30


def test_a_server_on_a_gpu_has_room_for_its_tensors() -> None:
    """The command is the image's, with a pool for as many events as the launcher's."""
    gpu = (ROOT / "deploy" / "compose.gpu.yaml").read_text()
    ((device, size),) = re.findall(r"--cuda-memory-pool-byte-size=(\d+):\$\{GPU_POOL:-(\d+)\}", gpu)
    assert device == "0"
    wanted = IN_FLIGHT * gpu_memory_at_limits(read_card(ROOT / "weights" / "default"))
    assert wanted <= int(size) < 1.5 * wanted
    (command,) = re.findall(
        r"^CMD (\[\"tritonserver\".*\])$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE
    )
    assert re.findall(r"^ +- (\S+)$", gpu, re.MULTILINE)[: len(json.loads(command))] == json.loads(command)


def test_an_image_has_the_launchers_settings() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    found = dict(re.findall(r"^ENV (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    assert SETTINGS.items() <= found.items()


def test_a_server_on_a_gpu_has_torch() -> None:
    """The image's extra is one that the project has, and the GPU's adds torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (plain,) = re.findall(r"^ARG EXTRA=(\w+)$", dockerfile, re.MULTILINE)
    assert "/source[${EXTRA}]" in dockerfile
    (on_gpu,) = re.findall(
        r"^ +EXTRA: (\w+)$", (ROOT / "deploy" / "compose.gpu.yaml").read_text(), re.MULTILINE
    )
    assert not any(package.startswith("torch") for package in project[plain])
    assert any(package.startswith("torch") for package in project[on_gpu])
    assert f"tritrack[{plain}]" in project[on_gpu]


def test_the_server_is_reached_from_this_machine_alone() -> None:
    ports = re.findall(r'^ +- "(.+:\d+)"$', COMPOSE, re.MULTILINE)
    assert len(ports) == 3
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)


@pytest.mark.parametrize("target", ["serve-container", "export-container"])
@pytest.mark.parametrize(
    ("docker", "sentence"),
    [
        (None, "there is no docker here; install Docker Engine and its compose plugin"),
        ('[ "$1" != compose ]', "docker has no compose plugin here; install it"),
        ('[ "$1" != info ]', "docker reaches no daemon here; start it, or become a member of its group"),
    ],
)
def test_what_is_missing_of_docker_is_said(
    tmp_path: Path, target: str, docker: str | None, sentence: str
) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    if docker is not None:
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{docker}\n")
        program.chmod(0o755)
    # PYTHON is given, so that nothing but a docker is looked for on the PATH.
    run = subprocess.run(
        [make, "--no-print-directory", "--directory", ROOT, target, "PYTHON=python3"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert [line for line in run.stdout.splitlines() if line.startswith("make: ")] == [f"make: {sentence}"]


@pytest.mark.parametrize(
    ("variables", "exported", "served"),
    [
        ([], "onnx", "build/engines"),
        (["DEVICE=gpu"], "onnx --edge-sum scatter", "build/engines-scatter"),
        (["DEVICE=gpu", "TENSORRT=1"], None, "build/container_plans"),
    ],
)
def test_a_container_gets_the_engines_of_its_device(
    variables: list[str], exported: str | None, served: str
) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    run = subprocess.run(
        [make, "--dry-run", "--directory", ROOT, "serve-container", "PYTHON=python3", *variables],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = re.sub(r"\s*\\\n\s*", " ", run.stdout)
    exports = re.findall(r"tritrack export --engine (.+?) --weights .* --out (\S+)", lines)
    assert exports == ([] if exported is None else [(exported, served)])
    assert re.findall(r"tritrack repository --engines (\S+)", lines) == [served]


def make_with(venv: Path, *arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """Run make in an environment that is up to date, so that it installs nothing; its python has an answer of its own."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    (venv / "bin").mkdir()
    for program in ("python", "tritrack"):
        (venv / "bin" / program).write_text(f'#!/bin/sh\n{python}\nexec {sys.executable} "$@"\n')
        (venv / "bin" / program).chmod(0o755)
    for stamp in ("dev", "demo", "gpu"):
        (venv / stamp).touch()
    return subprocess.run(
        [make, "--no-print-directory", "--directory", ROOT, *arguments, f"VENV={venv}", "PYTHON=python3"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("target", ["bench-gpu", "test-gpu"])
def test_what_needs_a_gpu_says_at_once_that_there_is_none(target: str, tmp_path: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    run = make_with(tmp_path, target)
    assert run.returncode != 0
    assert run.stdout == "make: there is no GPU here\n"


def test_a_gpu_gets_the_onnx_runtime_with_cuda(tmp_path: Path) -> None:
    """In the place of the other, in a pinned version."""
    run = make_with(tmp_path, "--dry-run", "--always-make", f"{tmp_path}/gpu")
    lines = re.sub(r"\s*\\\n\s*", " ", run.stdout).splitlines()
    installs = [line.partition("-m pip ")[2] for line in lines if "-m pip " in line]
    assert installs[-2] == "uninstall --yes onnxruntime"
    assert re.search(r"-c constraints\.txt .*--no-deps --force-reinstall onnxruntime-gpu$", installs[-1])
    assert re.search(r"^onnxruntime-gpu==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_bench_gpu_without_an_engine_for_it_has_failed(tmp_path: Path) -> None:
    gpu_alone = 'case "$*" in *find_gpu*) exit 0;; *cuda_is_there* | *tensorrt*) exit 1;; esac'
    run = make_with(tmp_path, "bench-gpu", python=gpu_alone)
    assert run.returncode != 0
    assert (
        run.stdout
        == "make: neither an ONNX Runtime with CUDA (onnxruntime-gpu) nor TensorRT is here: nothing to measure\n"
    )


def test_each_measurement_on_a_gpu_runs_whatever_the_others_do(tmp_path: Path) -> None:
    """Events and engines that lie there are not made again."""
    script = """
case "$*" in
    *find_gpu* | *cuda_is_there*) exit 0;;
    *tensorrt*) exit 1;;
esac
echo "ran $1 $2"
case "$*" in *bench.gpu* | *bench.service*) exit 1;; esac
exit 0"""
    venv, inputs = tmp_path / "venv", tmp_path / "inputs"
    venv.mkdir()
    made = ("pileup0/event000000023.parquet", "pileup200/event000000000.parquet", "engines/card.json")
    for name in made:
        (inputs / name).parent.mkdir(parents=True)
        (inputs / name).touch()
    folders = (f"GPU_EVENTS={inputs}", f"SCATTERED={inputs / 'engines'}")
    run = make_with(venv, "bench-gpu", *folders, python=script)
    assert run.returncode != 0
    ran = re.findall(r"^ran -m tritrack\.bench\.(\w+)$", run.stdout, re.MULTILINE)
    assert ran == ["gpu", "packing", "service", "repeats"]
    assert run.stdout.count("ran ") == len(ran)
    assert "make: TensorRT is not here, its engines are left out\n" in run.stdout


def test_repository_is_written_for_an_image(
    run: Callable[..., Any], scattered_engines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wanted = ("repository", "--engines", scattered_engines, "--out", out, "--server", "container")
    refused = run(*wanted, "--image", "23.01")
    assert refused.code != 0
    assert refused.err.startswith("tritrack: image 23.01: not known, ")
    misused = run(*wanted, "--gpu-memory", "4096")
    assert (misused.code, misused.err.count("\n")) == (2, 1)
    assert "--gpu-memory goes with --server container --device gpu" in misused.err
    assert run(*wanted, "--image", PINNED, "--device", "gpu", "--gpu-memory", "4096").code == 0
    assert str(4096 << 20) in (out / "gnn" / "config.pbtxt").read_text()
