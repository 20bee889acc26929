"""What runs in NVIDIA's images: real small engines, and their copies of other versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

onnx = pytest.importorskip("onnx")

from tritrack.ensemble_repo.images import IMAGES, PINNED, ImageError, ServerImage, check_engines, find_image
from tritrack.ensemble_repo.render import render_repository
from tritrack.stages.card import CardError
from tritrack.stages.plan_file import Gpu, PlanFacts, facts_file

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "containers.md"


def row(image: ServerImage) -> str:
    versions = (image.triton, image.tensorrt, image.onnxruntime, image.cuda, image.python)
    tag = f"**{image.tag}**" if image.tag == PINNED else image.tag
    return f"| {tag} | {' | '.join(versions)} | {image.ir_version} | {image.opset} | {image.source} |"


def test_the_documentation_has_the_table() -> None:
    table = PAGE.read_text().split("<!-- images -->")[1].split("<!-- end of images -->")[0]
    assert [line for line in table.splitlines() if line.startswith("|")][2:] == list(
        map(row, IMAGES.values())
    )


def test_the_table_is_one_of_known_images() -> None:
    assert find_image(PINNED).tag == PINNED
    assert all(image.tag == tag for tag, image in IMAGES.items())
    assert all(image.tensorrt.startswith(image.tensorrt_package) for image in IMAGES.values())
    with pytest.raises(ImageError, match=r"image 23\.01: not known, 24\.12 and 25\.01 are"):
        find_image("23.01")


@pytest.mark.parametrize("image", IMAGES.values(), ids=lambda image: image.tag)
def test_exported_engines_run_in_every_image(small_engines: Path, image: ServerImage) -> None:
    engines = sorted(small_engines.glob("*.onnx"))
    assert len(engines) == 3
    check_engines(engines, image=image)


def newer_ir(model: Any) -> None:
    model.ir_version = 11


def newer_opset(model: Any) -> None:
    model.opset_import[0].version = 22


def newer_function(model: Any) -> None:
    domain = onnx.helper.make_opsetid("ai.onnx", 23)
    model.functions.append(onnx.helper.make_function("local", "f", ["x"], ["x"], [], [domain]))


def other_domain(model: Any) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 99))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (newer_ir, r"gnn\.onnx: of IR version 11, the ONNX Runtime 1\.20\.1 of image 25\.01 reads up to 10"),
        (newer_opset, r"gnn\.onnx: of opset 22, the ONNX Runtime 1\.20\.1 of image 25\.01 reads up to 21"),
        (newer_function, r"gnn\.onnx: of opset 23, .* reads up to 21"),
        (other_domain, None),
    ],
)
def test_files_that_the_image_cannot_read(
    small_engines: Path, tmp_path: Path, change: Callable[[Any], None], sentence: str | None
) -> None:
    model = onnx.load(small_engines / "gnn.onnx")
    change(model)
    onnx.save(model, tmp_path / "gnn.onnx")
    if sentence is None:
        check_engines([tmp_path / "gnn.onnx"], image=IMAGES["25.01"])
    else:
        with pytest.raises(ImageError, match=sentence):
            check_engines([tmp_path / "gnn.onnx"], image=IMAGES["25.01"])


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "gnn.onnx").write_bytes(b"weights of somebody's")
    with pytest.raises(ImageError, match=r"gnn\.onnx: no ONNX file"):
        check_engines([tmp_path / "gnn.onnx"], image=IMAGES[PINNED])


@pytest.mark.parametrize(
    ("built_by", "runs"),
    [
        ("10.8.0.43", True),
        ("10.8.0", True),  # a Python package that leaves out the build number
        ("10.8.0.40", False),
        ("10.80.0.43", False),
        ("10.7.0", False),
        ("11.4.0.106", False),
    ],
)
def test_plans_of_other_releases(tmp_path: Path, built_by: str, runs: bool) -> None:
    plan = tmp_path / "gnn.plan"
    facts = PlanFacts(
        tensorrt=built_by,
        gpu=Gpu(name="NVIDIA H100", compute_capability="9.0"),
        precision="fp32",
        profile={},
        onnx_sha256="",
        card_sha256="",
    )
    (tmp_path / facts_file(plan.name)).write_bytes(facts.to_json())
    if runs:
        check_engines([plan], image=IMAGES["25.01"])
    else:
        wanted = rf"gnn\.plan: built by TensorRT {built_by}, image 25\.01 has 10\.8\.0\.43: build it in this"
        with pytest.raises(ImageError, match=wanted):
            check_engines([plan], image=IMAGES["25.01"])


def test_a_plan_without_facts(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"gnn\.plan\.json: missing"):
        check_engines([tmp_path / "gnn.plan"], image=IMAGES[PINNED])


def test_a_container_repository_is_for_an_image(small_engines: Path, tmp_path: Path) -> None:
    engines, out = tmp_path / "engines", tmp_path / "repository"
    engines.mkdir()
    for path in small_engines.iterdir():
        (engines / path.name).write_bytes(path.read_bytes())
    render_repository(engines=engines, out=out, server="container", device="cpu", threads=1)
    model = onnx.load(engines / "filter.onnx")
    newer_ir(model)
    onnx.save(model, engines / "filter.onnx")
    with pytest.raises(ImageError, match=r"filter\.onnx: of IR version 11"):
        render_repository(engines=engines, out=out, server="container", device="cpu", threads=1)
    with pytest.raises(ImageError, match=r"image 23\.01: not known"):
        render_repository(
            engines=engines, out=out, server="container", device="cpu", threads=1, image="23.01"
        )
    earlier = (small_engines / "filter.onnx").read_bytes()
    assert (out / "filter" / "1" / "filter.onnx").read_bytes() == earlier
    # The wheel's server runs the networks in the ONNX Runtime that is installed here.
    render_repository(engines=engines, out=out, server="embedded", device="cpu", threads=1)
