"""`robolearn demo`: the whole way from demonstrations to a running policy, with a report to look at."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robolearn_data.schema import UserError

WRITES = ("demonstrations.zarr", "run", "eval", "deploy.zarr", "deploy.json", "report.json", "report.html")
"""What a demo writes into its folder, and replaces when it is there."""


@dataclass(frozen=True)
class Demo:
    """Collect demonstrations, train a policy on them, evaluate it, run it in real time, and write a report.

    A Panda arm in simulation lifts a cube. Everything is done by commands that you can type yourself; they are shown
    here and in the report. Takes a few minutes on two cores.
    """

    out: Path = Path("runs/demo")
    """Folder for data, checkpoints and report.html. What an earlier demo left there is replaced."""
    demonstrations: int = 100
    """Scripted demonstrations to record."""
    train_steps: int | None = None
    """Optimiser steps; by default those of the preset lift-state."""
    episodes: int = 50
    """Episodes to evaluate."""
    seconds: float = 20.0
    """Duration of the run in real time."""


@dataclass(frozen=True)
class Stage:
    name: str
    words: tuple[str, ...]
    """Of the command, without `robolearn`."""
    seconds: float

    @property
    def command(self) -> str:
        return shlex.join(("robolearn", *self.words))


def run(options: Demo) -> int:
    """Collect, train, evaluate and deploy in one go."""
    for name in ("demonstrations", "episodes", "seconds", "train_steps"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small; give a positive number")
    out = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    for name in WRITES:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    data, trained = str(out / "demonstrations.zarr"), str(out / "run")
    steps = [] if options.train_steps is None else ["--steps", str(options.train_steps)]
    recording = ["--out", str(out / "deploy.zarr"), "--json", str(out / "deploy.json")]
    plan = {
        "Collect": ["collect", data, *f"--world lift --teleop scripted --episodes {options.demonstrations}".split()],
        "Train": ["train", data, "--preset", "lift-state", "--policy", "flow", "--out", trained, *steps],
        "Evaluate": ["eval", trained, *f"--world lift --episodes {options.episodes} --out".split(), str(out / "eval")],
        "Deploy": ["deploy", trained, *f"--world lift --seconds {options.seconds:g}".split(), *recording],
    }
    stages: list[Stage] = []
    for name, words in plan.items():
        stage, code = _run_stage(name, words, number=len(stages) + 1, of=len(plan))
        if code:
            print(f"\nThe demo stopped: {name.lower()} failed with exit code {code}. The reason stands above.")
            return code
        stages.append(stage)

    from robolearn.cli.demo_report import write_report

    findings = _findings(out, stages)
    (out / "report.json").write_text(json.dumps(findings, indent=1) + "\n")
    write_report(out, findings)
    low, high = (100 * v for v in findings["success_interval"])
    rate, total = 100 * findings["success_rate"], findings["total_s"]
    print(f"\nsuccess {rate:.0f} %, 95 % interval [{low:.0f}, {high:.0f}] %, {findings['episodes']} episodes")
    print(f"done in {total / 60:.1f} minutes; look at {out / 'report.html'}")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Demo, run)}


def _run_stage(name: str, words: list[str], *, number: int, of: int) -> tuple[Stage, int]:
    from robolearn.cli.main import main

    print(f"\n[{number}/{of}] {name}\n$ robolearn {shlex.join(words)}", flush=True)
    began = time.monotonic()
    code = main(words)
    stage = Stage(name, tuple(words), round(time.monotonic() - began, 1))
    print(f"[{number}/{of}] {name} took {stage.seconds:.0f} s", flush=True)
    return stage, code


def _findings(out: Path, stages: list[Stage]) -> dict[str, Any]:
    """All figures of the demo, from what its commands wrote."""
    from robolearn.evaluation.machine import machine, versions
    from robolearn.policies.checkpoint import load_policy
    from robolearn.training.metrics import read_metrics
    from robolearn_data.dataset import Dataset

    dataset = Dataset.open(out / "demonstrations.zarr")
    evaluation = json.loads((out / "eval" / "results.json").read_text())
    losses = [row for row in read_metrics(out / "run") if "loss" in row]
    policy = load_policy(out / "run")
    return {
        **{key: evaluation[key] for key in ("success_rate", "success_interval", "episodes", "score", "score_interval")},
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "total_s": round(sum(stage.seconds for stage in stages), 1),
        "stages": [{**asdict(stage), "command": stage.command} for stage in stages],
        "demonstrations": {"episodes": dataset.episodes, "steps": dataset.steps, "rate_hz": dataset.schema.rate_hz},
        "training": {
            "steps": losses[-1]["step"],
            "loss": losses[-1]["loss"],
            "parameters": sum(p.numel() for p in policy.parameters()),
            "horizon": policy.spec.horizon,
            "action_horizon": policy.spec.action_horizon,
        },
        "evaluation": {key: value for key, value in evaluation.items() if key != "results"},
        "deploy": json.loads((out / "deploy.json").read_text()),
    }
