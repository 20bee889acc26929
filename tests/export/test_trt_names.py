"""Every name of TensorRT's that the code uses is in the real bindings, of TensorRT 10 and of 11.

The bindings need no GPU: with three empty libraries in place of TensorRT's they can be imported, and asked for
their names and signatures.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = (ROOT / "export" / "plan_builder.py", ROOT / "stages" / "plan_engine.py")
WHEELS = {"10": "10.16.1.11", "11": "11.4.0.106"}
CACHE = ROOT / "build" / "tensorrt-bindings"

PROGRAM = """
import json, sys
import tensorrt_bindings as trt
sys.modules["tensorrt"] = trt

def find(name):
    found = trt
    for part in name.split("."):
        found = getattr(found, part, None)
    return found

names, modules = json.load(sys.stdin)
docs = {}
for name in names:
    found = find(name)
    where = find(name.rpartition(".")[0]) if "." in name else trt
    if where is None or not hasattr(where, name.rpartition(".")[2]):
        docs[name] = None
    else:
        docs[name] = (found.__init__.__doc__ if isinstance(found, type) else found.__doc__) or ""
if modules:
    from tritrack.export.plan_builder import Log
    log = Log()
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"):
        log.log(getattr(trt.ILogger.Severity, severity), severity)
    docs["Log"] = log.lines
json.dump([trt.__version__, docs], sys.stdout)
"""


@dataclass
class Uses:
    """What a source uses of TensorRT.

    A variable counts as TensorRT's where it is annotated with a class of it. What would escape the list (a
    result that is kept without annotation, or used at once) is noted by its line.
    """

    names: set[str] = field(default_factory=set)  # "Builder.create_network"
    calls: set[tuple[str, int]] = field(default_factory=set)  # and the number of arguments
    results: set[tuple[str, str]] = field(
        default_factory=set
    )  # a method, and the class it is taken to return
    escaped: list[int] = field(default_factory=list)  # lines


def uses_of(source: str) -> Uses:
    tree = ast.parse(source)
    holds = _annotated(tree)
    uses = Uses()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if (name := _name(node, holds)) and not _is_inside(node, tree):
                uses.names.add(name)
            elif isinstance(node.value, ast.Call) and _name(node.value.func, holds):
                uses.escaped.append(node.lineno)
        elif isinstance(node, ast.Call) and (name := _name(node.func, holds)):
            uses.calls.add((name, len(node.args) + len(node.keywords)))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            if name := _name(node.value.func, holds):
                uses.results.add((name, holds[ast.unparse(node.target)]))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            kept = [ast.unparse(target) for target in node.targets]
            if _name(node.value.func, holds) and not set(kept) <= set(holds):
                uses.escaped.append(node.lineno)
    return uses


def _annotated(tree: ast.AST) -> dict[str, str]:
    """By variable ("builder", "self._context"), the class that it holds."""
    holds = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            target, annotation = ast.unparse(node.target), node.annotation
        elif isinstance(node, ast.arg) and node.annotation is not None:
            target, annotation = node.arg, node.annotation
        else:
            continue
        for part in ast.unparse(annotation).split(" | "):
            if part.startswith("trt."):
                holds[target] = part.removeprefix("trt.")
    return holds


def _name(node: ast.expr, holds: dict[str, str]) -> str | None:
    """Name in TensorRT of an attribute of it, or of a variable that holds an object of it."""
    text = ast.unparse(node)
    if text.startswith("trt.") and text.replace(".", "").replace("_", "").isalnum():
        return text.removeprefix("trt.")
    owner, _, attribute = text.rpartition(".")
    return f"{holds[owner]}.{attribute}" if owner in holds else None


def _is_inside(node: ast.Attribute, tree: ast.AST) -> bool:
    """Whether it is the first part of a longer name: then that one counts."""
    return any(isinstance(other, ast.Attribute) and other.value is node for other in ast.walk(tree))


def bindings(version: str) -> Path:
    """Return the folder of the unpacked bindings, from the package index at first."""
    folder = CACHE / f"{version}-{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.exists():
        fresh = folder.with_name(folder.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", f"--dest={fresh}", f"tensorrt-cu13-bindings=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(
                f"TensorRT's bindings {version} cannot be had: {done.stderr.strip().splitlines()[-1]}"
            )
        (wheel,) = fresh.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(fresh)
        fresh.rename(folder)
    return folder


def stand_ins(folder: Path, *, bindings: Path, major: str) -> None:
    """Write empty libraries with the symbols that the bindings resolve, where there are a compiler and nm."""
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, which the libraries' stand-ins are made with")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings / "tensorrt_bindings" / "tensorrt.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    symbols = re.findall(r"U (\w+(?:_INTERNAL|Registry|Version|Plugins))$", listed, flags=re.MULTILINE)
    assert "createInferBuilder_INTERNAL" in symbols
    source = folder / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{major}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
        subprocess.run(command, check=True)


@pytest.fixture(scope="module", params=sorted(WHEELS))
def ask(request, tmp_path_factory):
    """``ask(names)`` -> TensorRT's version and, by name, its docstring; None for a name that is not there."""
    major = request.param
    folder, libraries = bindings(WHEELS[major]), tmp_path_factory.mktemp("libraries")
    stand_ins(libraries, bindings=folder, major=major)
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]

    def run(names, *, modules=False):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([sorted(names), modules]),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": os.pathsep.join(paths)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        version, docs = json.loads(done.stdout)
        assert version == WHEELS[major]
        return docs

    return run


def signatures(doc: str) -> list[tuple[list[str], int, str]]:
    """Parameters without self, how many of them have no default, and the result, of each overload."""
    found = []
    for arguments, result in re.findall(r"\w+\((.*)\) -> (\S+)", doc):
        # Commas inside brackets separate nothing.
        parts = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", arguments)
        parts = [part.strip() for part in parts if not part.strip().startswith("self")]
        found.append((parts, sum("=" not in part for part in parts), result))
    return found


@pytest.mark.slow
def test_every_name_is_there(ask):
    uses = [uses_of(path.read_text()) for path in MODULES]
    names = set().union(*(use.names for use in uses))
    assert names > {"Builder.create_network", "IExecutionContext.execute_async_v3", "ICudaEngine"}
    docs = ask(names)
    assert [name for name in sorted(names) if docs[name] is None] == []
    for name, n_arguments in sorted(set().union(*(use.calls for use in uses))):
        accepted = [
            (len(parts), needed)
            for parts, needed, _ in signatures(docs[name])
            if needed <= n_arguments <= len(parts)
        ]
        assert accepted, f"{name} with {n_arguments} arguments: {docs[name]}"
    for name, wanted in set().union(*(use.results for use in uses)):
        if name == wanted:
            continue  # a class gives its objects
        results = {result.rpartition(".")[2] for *_, result in signatures(docs[name])}
        # One is named by the bindings as C++ names it.
        assert wanted in {result.replace("nvonnxparser::I", "") for result in results}, f"{name}: {results}"


@pytest.mark.slow
def test_what_needs_no_gpu_runs(ask):
    assert ask([], modules=True)["Log"] == ["INTERNAL_ERROR", "ERROR", "WARNING"]


@pytest.mark.slow
def test_a_name_that_is_not_there_is_found(ask):
    docs = ask(["Builder.create_networks", "NoSuchClass.method", "Builder.create_network"])
    assert [name for name, doc in docs.items() if doc is None] == [
        "Builder.create_networks", "NoSuchClass.method"
    ]  # fmt: skip


def test_nothing_escapes_the_list():
    for path in MODULES:
        assert uses_of(path.read_text()).escaped == [], path


@pytest.mark.parametrize(
    ("source", "names", "calls", "escaped"),
    [
        ("trt.Logger(trt.Logger.ERROR)", {"Logger", "Logger.ERROR"}, {("Logger", 1)}, []),
        (
            "b: trt.Builder = trt.Builder(log)\nb.create_network(1)",
            {"Builder", "Builder.create_network"},
            {("Builder", 1), ("Builder.create_network", 1)},
            [],
        ),
        (
            "def f(c: trt.IBuilderConfig | None):\n c.clear_flag(trt.BuilderFlag.TF32)",
            {"IBuilderConfig", "IBuilderConfig.clear_flag", "BuilderFlag.TF32"},
            {("IBuilderConfig.clear_flag", 1)},
            [],
        ),
        ("b = trt.Builder(log)", {"Builder"}, {("Builder", 1)}, [1]),
        ("trt.Builder(log).reset()", {"Builder"}, {("Builder", 1)}, [1]),
        ("other.create(1)", set(), set(), []),
    ],
)
def test_uses(source, names, calls, escaped):
    uses = uses_of(source)
    assert (uses.names, uses.calls, uses.escaped) == (names, calls, escaped)
