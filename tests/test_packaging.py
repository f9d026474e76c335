"""What is built: the wheel and the sdist hold what they should and nothing else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from support import EXPORTS

import onnx_attn

pytest.importorskip("hatchling")

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = EXPORTS.parent.parent
PACKAGES = ("onnx_attn",)


def files_under(*folders: str) -> set[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def wheel_of(source: Path, folder: Path) -> dict[str, bytes]:
    """The files of the wheel that is built there, by name."""
    with zipfile.ZipFile(next(WheelBuilder(str(source)).build(directory=str(folder), versions=["standard"]))) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return wheel_of(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("sdist")))))


def test_the_wheel_holds_the_packages_alone(wheel: dict[str, bytes]) -> None:
    packed = {name for name in wheel if ".dist-info/" not in name}
    assert packed == files_under(*PACKAGES)
    assert {"onnx_attn/py.typed", "onnx_attn/demo/vit_b_16_tiny.onnx"} <= packed


def test_the_wheel_s_metadata_say_version_licence_and_entry_points(wheel: dict[str, bytes]) -> None:
    info = f"onnx_attn-{onnx_attn.__version__}.dist-info"
    metadata = Parser().parse(io.StringIO(wheel[f"{info}/METADATA"].decode()))
    assert metadata["Version"] == onnx_attn.__version__
    assert metadata["License-Expression"] == "MIT" and f"{info}/licenses/LICENSE" in wheel
    entries = wheel[f"{info}/entry_points.txt"].decode()
    assert "onnx-attn = onnx_attn.cli:app" in entries
    assert "onnx-attn = onnx_attn.polygraphy_plugin:argument_groups" in entries


def test_the_sdist_holds_what_builds_the_same_wheel(wheel: dict[str, bytes], sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as file:
        names = {"/".join(PurePosixPath(name).parts[1:]) for name in file.getnames()}
        file.extractall(tmp_path, filter="data")
    own = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", ".gitignore", "PKG-INFO"}
    assert names == files_under(*PACKAGES, "docs") | own
    again = wheel_of(next(tmp_path.iterdir()), tmp_path)
    assert again.keys() == wheel.keys()
    assert {name for name, content in again.items() if content != wheel[name]} == set()
