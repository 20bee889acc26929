"""An engine of another machine is refused with a sentence, on stand-ins for the driver and TensorRT's library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest

from tritrack.stages.card import CardError
from tritrack.stages.plan_file import Gpu, PlanFacts, Sizes, check_plan, facts_file, read_facts

H100 = Gpu(name="NVIDIA H100 PCIe", compute_capability="9.0")
FACTS = PlanFacts(
    tensorrt="10.16.1.11",
    gpu=H100,
    precision="fp16",
    profile={"HITS": Sizes(min=(1, 3), opt=(100, 3), max=(300, 3))},
    onnx_sha256="ab",
    card_sha256="cd",
)
LIBRARIES = {
    "libcuda.so.1": """
        #include <string.h>
        int cuInit(unsigned flags) { return flags; }
        int cuDeviceGet(int *device, int number) { *device = 7; return number; }
        int cuDeviceGetName(char *name, int size, int device) {
            strncpy(name, "NVIDIA H100 PCIe", size);
            return device != 7;
        }
        int cuDeviceGetAttribute(int *value, int attribute, int device) {
            *value = attribute == 75 ? 9 : 0;
            return device != 7;
        }""",
    "libnvinfer.so.10": "int getInferLibVersion(void) { return 101601; }",
    "no GPU": "int cuInit(unsigned flags) { return 100; }",
}


def write(folder, facts):
    plan = folder / "gnn.plan"
    plan.write_bytes(b"engine")
    (folder / facts_file(plan.name)).write_bytes(facts.to_json())
    return plan


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """``machine(plan, libraries)`` -> what check_plan says where only these libraries are."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed, which the libraries' stand-ins are made with")
    built = tmp_path_factory.mktemp("libraries")
    for name, source in LIBRARIES.items():
        (built / "source.c").write_text(source)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", built / name, built / "source.c"], check=True)
    program = (
        "import sys; from pathlib import Path; from tritrack.stages.card import CardError\n"
        "from tritrack.stages.plan_file import check_plan\n"
        "try: print(check_plan(Path(sys.argv[1])).gpu.name)\n"
        "except CardError as error: print(error)"
    )

    def run(plan, libraries):
        folder = tmp_path_factory.mktemp("machine")
        for name, source in libraries.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(built / source, folder / name)
        done = subprocess.run(
            [sys.executable, "-c", program, plan],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


HERE = {name: name for name in ("libcuda.so.1", "libnvinfer.so.10")}
IN_PACKAGE = {"libcuda.so.1": "libcuda.so.1", "tensorrt_libs/libnvinfer.so.10": "libnvinfer.so.10"}


@pytest.mark.parametrize(
    ("change", "libraries", "said"),
    [
        ({}, HERE, "NVIDIA H100 PCIe"),
        ({}, IN_PACKAGE, "NVIDIA H100 PCIe"),
        (
            {"tensorrt": "10.16.0.72"},
            HERE,
            "{}: built by TensorRT 10.16.0.72, here is 10.16.1: export it again with this one",
        ),
        ({"tensorrt": "99.4.0.1"}, HERE, "{}: built by TensorRT 99.4.0.1, libnvinfer.so.99 is not here"),
        (
            {"gpu": Gpu(name="NVIDIA A100-SXM4-80GB", compute_capability="8.0")},
            HERE,
            (
                "{}: built for an NVIDIA A100-SXM4-80GB (compute capability 8.0), here is an NVIDIA H100 PCIe (9.0): "
                "export it again on this one"
            ),
        ),
        ({}, HERE | {"libcuda.so.1": "no GPU"}, "{}: built for an NVIDIA H100 PCIe, no GPU is here"),
    ],
    ids=[
        "the same machine",
        "TensorRT from the index",
        "another release",
        "no library",
        "another GPU",
        "no GPU",
    ],
)
def test_check(machine, tmp_path, change, libraries, said):
    plan = write(tmp_path, replace(FACTS, **change))
    assert machine(plan, libraries) == said.format(plan)


def test_facts_are_read_back(tmp_path):
    assert read_facts(write(tmp_path, FACTS)) == FACTS


def test_facts_that_are_missing_or_broken(tmp_path):
    plan = write(tmp_path, FACTS)
    beside = tmp_path / "gnn.plan.json"
    beside.write_bytes(msgspec.json.encode({"tensorrt": "10"}))
    with pytest.raises(CardError, match=r"gnn\.plan\.json: Object missing required field `gpu`"):
        check_plan(plan)
    beside.unlink()
    with pytest.raises(CardError, match=r"gnn\.plan\.json: missing, it says what gnn\.plan was built for"):
        check_plan(plan)
