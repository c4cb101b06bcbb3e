"""Trains the policies that the delay benchmark (runtime_delay.py) compares, on PushT and Lift.

    python tests/benchmarks/runtime_delay_train.py pusht base        # one run; the same command resumes it
    python tests/benchmarks/runtime_delay_train.py pusht streaming --out FOLDER
    python tests/benchmarks/runtime_delay_train.py all               # all six, one after the other

Runs of a task have the same trunk, data, seed, optimiser and number of steps. Variants differ in the objective:

- base: flow matching as in the presets pusht-state and lift-state (sync, naive, ensemble, rtc, rtc-identity, bid);
- prefix: up to 9 leading actions given clean in training, hence delays of up to 8 control steps (rtc-trained);
- streaming: the same, and blocks of 8 actions of rising noise (streaming).

Chunks have 24 actions instead of the presets' 16: a delay d needs d <= s <= H - d, and s is 8 here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pusht import RUNS, prepare

from robolearn.cli.main import main as robolearn
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.training.config import PRESETS, TrainConfig

OUT = RUNS / "delay"
HORIZON = 24
DEMONSTRATIONS = 100
"""Of Lift."""
PRESET = {"pusht": "pusht-state", "lift": "lift-state"}
MOST_DELAY, BLOCK = 8, 8
OBJECTIVES = {
    "base": FlowConfig(),
    "prefix": FlowConfig(prefix=1 + MOST_DELAY),
    "streaming": FlowConfig(prefix=1 + MOST_DELAY, streaming=BLOCK),
}
"""Variant -> objective."""


def data(task: str) -> Path:
    """The task's dataset, made if it is not there."""
    if task == "pusht":
        prepare()
        return RUNS / "relabelled.zarr"
    lift = OUT / "lift.zarr"
    if not lift.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        partial = lift.with_suffix(".partial")
        words = ["collect", str(partial), "--world", "lift", "--teleop", "scripted"]
        words += ["--episodes", str(DEMONSTRATIONS), "--workers", "1", *(["--resume"] if partial.exists() else [])]
        if robolearn(words):
            raise SystemExit(2)
        partial.rename(lift)
    return lift


def config(task: str, variant: str) -> TrainConfig:
    preset = PRESETS[PRESET[task]]()
    policy = replace(preset.policy, objective=OBJECTIVES[variant], horizon=HORIZON)
    # As far from the end of an episode as the presets' windows: eight actions of a window are real at least.
    return replace(preset, policy=policy, pad_after=HORIZON - preset.policy.action_horizon - 1)


def train(task: str, variant: str, out: Path) -> None:
    from robolearn.training.loop import train as train_policy
    from robolearn.training.metrics import read_metrics
    from robolearn.training.processes import processes

    settings = config(task, variant)
    started = (out / "training.safetensors").exists()
    if started and read_metrics(out)[-1]["step"] == settings.steps:
        print(f"{out} is trained already")
        return
    dataset = data(task)
    with processes("cpu") as group:
        train_policy(settings, [dataset], out, group, resume=started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*PRESET, "all"])
    parser.add_argument("variant", choices=list(OBJECTIVES), nargs="?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.task == "all":
        for task in PRESET:
            for variant in OBJECTIVES:
                train(task, variant, OUT / f"{task}_{variant}")
    elif options.variant is None:
        parser.error(f"name a variant: {', '.join(OBJECTIVES)}")
    else:
        train(options.task, options.variant, options.out or OUT / f"{options.task}_{options.variant}")


if __name__ == "__main__":
    main()
