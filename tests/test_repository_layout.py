"""What the repository holds at its top, and what a built wheel carries."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP_LEVEL = {
    *("pyproject.toml", "README.md", "ARCHITECTURE.md", "LICENSE", "Makefile", "constraints.txt", ".gitignore", ".ci"),
    *("robolearn", "hardware", "sim", "data", "deploy", "tests"),
}

PACKAGES = {
    "robolearn": "robolearn",
    "robolearn_data": "data/robolearn_data",
    "robolearn_deploy": "deploy/robolearn_deploy",
    "robolearn_hardware": "hardware/robolearn_hardware",
    "robolearn_sim": "sim/robolearn_sim",
}
"""Import name -> folder."""


def package_files(root: Path) -> set[str]:
    """The files of the five packages as a wheel names them, compiled ones left out."""
    found = set()
    for package, folder in PACKAGES.items():
        files = (p for p in (root / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        found |= {f"{package}/{p.relative_to(root / folder).as_posix()}" for p in files}
    return found


@pytest.fixture(scope="module")
def wheel_names(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths in a wheel that is built from the tree, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(root)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_every_file_of_the_five_packages(wheel_names: list[str], root: Path) -> None:
    expected = package_files(root)
    assert {f"{package}/{name}" for package in PACKAGES for name in ("__init__.py", "py.typed")} <= expected
    assert expected <= set(wheel_names)


def test_wheel_puts_nothing_but_the_five_packages_into_site_packages(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)


def test_wheel_carries_licence_and_command(wheel_names: list[str]) -> None:
    endings = {name.partition(".dist-info/")[2] for name in wheel_names}
    assert {"licenses/LICENSE", "entry_points.txt"} <= endings


def test_top_level_is_fixed(root: Path) -> None:
    ignored = [line.strip("/\n") for line in (root / ".gitignore").open() if not line.startswith("#")]
    found = {p.name for p in root.iterdir() if not any(fnmatch.fnmatch(p.name, pattern) for pattern in ignored)}
    assert found - {".git"} == TOP_LEVEL


def test_no_ignore_rule_hides_a_source_file(root: Path) -> None:
    """hatchling leaves ignored files out of the wheel, so a rule such as ``data/`` would empty it without a word."""
    rules = [line.strip() for line in (root / ".gitignore").open() if line.strip() and not line.startswith("#")]
    parts = {part for folder in PACKAGES.values() for part in Path(folder).parts}
    parts |= {part for name in package_files(root) for part in Path(name).parts}
    hidden = {
        part
        for part in parts
        for rule in rules
        if "/" not in rule.rstrip("/") and fnmatch.fnmatch(part, rule.strip("/"))
    }
    assert hidden == set()


def test_folders_are_homes_of_packages_and_not_packages(root: Path) -> None:
    for folder in ("data", "hardware", "sim", "deploy", "tests"):
        assert not (root / folder / "__init__.py").exists()


def test_no_file_names_a_path_of_one_machine(root: Path) -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/\w")
    suffixes = {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".xml", ".html", ""}
    found = []
    for entry in TOP_LEVEL:
        top = root / entry
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
                lines = path.read_text(errors="replace").splitlines()
                found += [f"{path.relative_to(root)}:{i}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []
