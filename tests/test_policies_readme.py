"""What robolearn/policies/README.md says about adding an objective, a trunk and an encoder is carried out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "robolearn/policies/README.md").read_text()


def written_files() -> dict[str, str]:
    """Path -> the Python that the page shows for it."""
    found = re.findall(r"`(robolearn/[\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    return dict(found)


def changes() -> list[tuple[str, str, str]]:
    """(path, what is there, what shall be there) of every change that the page shows: a line or a part of one that is
    replaced, or a new line before one that is shown."""
    found = []
    for block in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL):
        path = old = new = ""
        for line in block.splitlines():
            sign, text = line[0], line[1:]
            if sign == "-":
                old = text
            elif sign == "+" and old:
                found.append((path, old, text))
                old = ""
            elif sign == "+":
                new = text
            elif new:
                found.append((path, text, f"{new}\n{text}"))
                new = ""
            else:
                path = text
    return found


@pytest.mark.slow
def test_a_new_objective_trunk_and_encoder_train_and_load_when_added_as_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "robolearn", tmp_path / "robolearn", ignore=shutil.ignore_patterns("__pycache__"))
    files = written_files()
    assert set(files) == {
        "robolearn/policies/objectives/clean_flow.py",
        "robolearn/policies/trunks/mlp.py",
        "robolearn/policies/encoders/patches.py",
    }
    for name, content in files.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    for name, before, after in changes():
        text = (tmp_path / name).read_text()
        assert text.count(before) == 1, f"{name} has {before!r} {text.count(before)} times"
        (tmp_path / name).write_text(text.replace(before, after))

    schema = Schema(10, {"img": Stream((24, 24, 3), "uint8", kind="image"), "action": Stream((2,), kind="action")})
    rng = np.random.default_rng(0)
    with DatasetWriter.create(tmp_path / "data.zarr", schema) as writer:
        for _ in range(30):
            writer.add({"img": rng.integers(0, 256, (24, 24, 3), np.uint8), "action": rng.random(2, np.float32)})
        writer.save_episode({})
    chosen = {
        "objective": {"kind": "clean-flow"},
        "trunk": {"kind": "mlp", "width": 16},
        "encoder": {"image": "patches"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"policy": chosen, "observe": ["img"], "steps": 2}))
    program = (
        "import sys; from robolearn.cli.main import main; from robolearn.policies.checkpoint import load_policy\n"
        "assert main(['train', 'data.zarr', '--config', 'mine.yaml', '--out', 'run', '--batch-size', '4']) == 0\n"
        "import torch; policy = load_policy('run')\n"
        "seen = {'img': torch.zeros(3, 2, 24, 24, 3, dtype=torch.uint8)}\n"
        "print('chunk', tuple(policy.sample(policy.encode(seen)).shape), type(policy.objective).__name__)\n"
    )
    roots = [str(tmp_path), *(str(ROOT / folder) for folder in ("data", "hardware", "sim", "deploy"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "chunk (3, 16, 2) CleanFlow" in done.stdout
