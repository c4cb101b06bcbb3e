"""The import arrows between the five packages, and the calls that none of them may make."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = {
    "robolearn_data": "data/robolearn_data",
    "robolearn_hardware": "hardware/robolearn_hardware",
    "robolearn_sim": "sim/robolearn_sim",
    "robolearn": "robolearn",
    "robolearn_deploy": "deploy/robolearn_deploy",
}

MAY_IMPORT = {
    "robolearn_data": [],
    "robolearn_hardware": ["robolearn_data.schema"],
    "robolearn_sim": ["robolearn_data", "robolearn_hardware"],
    "robolearn": ["robolearn_data"],
    "robolearn_deploy": ["robolearn_data", "robolearn_hardware", "robolearn.policies"],
    # Parts of robolearn with a rule of their own. The runtime imports the policies, so these must not pull in the rest.
    "robolearn.policies": ["robolearn_data"],
    "robolearn.cli": list(PACKAGES),
}
"""Package or part of one -> what it may import of the five packages besides itself."""

LIBRARIES_OF_DATA = "numpy zarr numcodecs google_crc32c pyarrow av simplejpeg imagecodecs"
EXTRAS_OF_DATA = "obstore h5py mcap mcap_protobuf foxglove_schemas_protobuf rerun"
THIRD_PARTY_OF_DATA = {*LIBRARIES_OF_DATA.split(), *EXTRAS_OF_DATA.split()}
"""numcodecs (the codecs of zarr v2) comes with zarr; the extras are "cloud", "formats" and "viewers"."""

NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NEVER_CALLED = {"torch.load", "torch.save", "eval", "exec", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the five packages."""
    root = Path(__file__).resolve().parent.parent
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def imports(tree: ast.AST, name: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in the module ``name``, in functions too.

    ``from a import b`` gives ``a.b``: b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            source = ".".join([*up, node.module] if node.module else up)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            target = node.args[0] if node.args else None
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield node.lineno, target.value


def inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def broken_arrows(source: str, name: str, *, is_package: bool = False) -> list[str]:
    """The imports of module ``name`` with this source text that its package may not make."""
    home = max((part for part in MAY_IMPORT if inside(name, part)), key=len)
    found = []
    for line, wanted in imports(ast.parse(source), name, is_package=is_package):
        ours = wanted.split(".")[0] in PACKAGES
        allowed = any(inside(wanted, part) for part in [home, *MAY_IMPORT[home]])
        of_command_line = inside(wanted, "robolearn.cli") and home != "robolearn.cli"
        if ours and (not allowed or of_command_line):
            found.append(f"{name}:{line} imports {wanted}")
    return found


def forbidden(source: str, *, wall_clock: bool = True) -> list[str]:
    """Imports and calls in this source text that run code out of files, or read the wall clock if that is forbidden."""
    found = []
    tree = ast.parse(source)
    for line, wanted in imports(tree, "module"):
        if wanted.split(".")[0] in NEVER_IMPORTED or wanted in NEVER_CALLED:
            found.append(f"{line}: imports {wanted}")
        if wall_clock and wanted in WALL_CLOCK:
            found.append(f"{line}: imports {wanted}, which jumps; use time.monotonic_ns")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in NEVER_CALLED:
            found.append(f"{node.lineno}: uses {ast.unparse(node)}")
        if wall_clock and isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCK:
            found.append(f"{node.lineno}: uses {ast.unparse(node)}, which jumps; use time.monotonic_ns")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"{node.value.lineno}: allow_pickle")
    return found


MODULES = list(modules())


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_follow_the_arrows(name: str, path: Path) -> None:
    assert broken_arrows(path.read_text(), name, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_runs_no_code_out_of_files_and_keeps_the_wall_clock_out_of_control(name: str, path: Path) -> None:
    in_control = name.split(".")[0] in ("robolearn_deploy", "robolearn_hardware")
    assert forbidden(path.read_text(), wall_clock=in_control) == []


def test_data_package_needs_few_others() -> None:
    foreign = {
        wanted.split(".")[0]
        for name, path in MODULES
        if name.split(".")[0] == "robolearn_data"
        for _, wanted in imports(ast.parse(path.read_text()), name, is_package=path.name == "__init__.py")
    }
    assert foreign - sys.stdlib_module_names - {"robolearn_data"} <= THIRD_PARTY_OF_DATA


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import robolearn_sim", "robolearn_data.dataset"),
        ("from robolearn_data.world import World", "robolearn_hardware.arm"),
        ("from robolearn_data import dataset", "robolearn_hardware.arm"),
        ("def f():\n    from robolearn_sim.worlds import make_world", "robolearn.evaluation.rollout"),
        ("from robolearn_deploy import servo", "robolearn_sim.worlds"),
        ("import robolearn.training.loop", "robolearn_deploy.servo"),
        ("from robolearn import training", "robolearn_deploy.servo"),
        ("from ..training import loop", "robolearn.policies.flow"),
        ("from robolearn.cli import parse", "robolearn.training.loop"),
        ("from importlib import import_module\nimport_module('robolearn_sim')", "robolearn.training.loop"),
    ],
)
def test_a_broken_arrow_is_found(source: str, name: str) -> None:
    assert len(broken_arrows(source, name)) == 1


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from robolearn_data.schema import Schema", "robolearn_hardware.arm"),
        ("from robolearn_data import schema", "robolearn_hardware.arm"),
        ("from robolearn.policies.spec import PolicySpec", "robolearn_deploy.servo"),
        ("from .spec import PolicySpec", "robolearn.policies.flow"),
        ("import robolearn_sim.worlds", "robolearn.cli.eval"),
        ("from robolearn.policies import spec", "robolearn.training.loop"),
        ("import numpy", "robolearn_data.schema"),
    ],
)
def test_an_allowed_import_is_let_through(source: str, name: str) -> None:
    assert broken_arrows(source, name) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import yaml\nyaml.load('x', Loader=yaml.Loader)",
        "eval('1')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import time\ntime.time()",
        "import time\nclock = time.time",
        "from time import time",
    ],
)
def test_a_forbidden_call_is_found(source: str) -> None:
    assert len(forbidden(source)) == 1


@pytest.mark.parametrize(
    "source", ["model.eval()", "import time\ntime.monotonic_ns()", "import yaml\nyaml.safe_load('x')"]
)
def test_a_harmless_call_is_let_through(source: str) -> None:
    assert forbidden(source) == []
