"""The page report.html of `robolearn demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robolearn.evaluation.plots import evaluation_figure
from robolearn.evaluation.report import commands, films, page, paragraph, picture, section, table, tiles
from robolearn.evaluation.results import EpisodeResult
from robolearn.training.metrics import read_metrics, training_figure

INTRODUCTION = (
    "A simulated Panda arm learns to lift a cube from recorded demonstrations, is evaluated from starts that it has "
    "not seen, and then runs in real time with the policy in a process of its own."
)
NEXT_STEPS = (
    "# more episodes give a narrower interval",
    "robolearn eval {run} --world lift --episodes 500",
    "# another way to learn from the same demonstrations",
    "robolearn train {data} --preset lift-state --policy diffusion --out runs/lift-diffusion",
    "# run the policy for longer, and look at what was recorded",
    "robolearn deploy {run} --world lift --seconds 60 --out runs/lift-deploy.zarr",
    "robolearn data info runs/lift-deploy.zarr",
    "# every command explains itself",
    "robolearn --help",
)


def write_report(out: Path, findings: dict[str, Any]) -> None:
    """Write ``out``/report.html from ``findings`` (the content of report.json) and the files beside it."""
    stages = {stage["name"]: stage for stage in findings["stages"]}
    text = page(
        "robolearn demo",
        INTRODUCTION,
        _headline(findings),
        _collect(findings, stages["Collect"]),
        _train(out, findings, stages["Train"]),
        _evaluate(out, findings, stages["Evaluate"]),
        _deploy(findings, stages["Deploy"]),
        _provenance(findings),
        section(
            "How to go on",
            commands(line.format(run=out / "run", data=out / "demonstrations.zarr") for line in NEXT_STEPS),
        ),
    )
    (out / "report.html").write_text(text)


def _headline(findings: dict[str, Any]) -> str:
    low, high = (100 * v for v in findings["success_interval"])
    evaluation, deploy = findings["evaluation"], findings["deploy"]
    p50, p99 = evaluation["latency_ms_p50"], evaluation["latency_ms_p99"]
    sure = f"95 % interval {low:.0f} to {high:.0f} %, {findings['episodes']} episodes"
    return tiles(
        [
            ("Success", _percent(findings["success_rate"]), sure),
            ("Inference", f"{p50:.0f} ms", f"per chunk of actions, median; 99 % within {p99:.0f} ms"),
            ("Control jitter", _ms(deploy["lateness"]["p99_ms"]), "99 % of the ticks begin this close to their time"),
            ("Total", f"{findings['total_s'] / 60:.1f} min", "from nothing to a running policy"),
        ]
    )


def _collect(findings: dict[str, Any], stage: dict[str, Any]) -> str:
    data = findings["demonstrations"]
    minutes = data["steps"] / data["rate_hz"] / 60
    said = (
        f"{data['episodes']} successful demonstrations by a scripted expert, with disturbed actions so that they show "
        f"how to come back: {data['steps']} steps at {data['rate_hz']:g} Hz, {minutes:.1f} minutes of robot time, "
        f"recorded in {_duration(stage['seconds'])}."
    )
    return section("1. Demonstrations", commands([stage["command"]]), paragraph(said))


def _train(out: Path, findings: dict[str, Any], stage: dict[str, Any]) -> str:
    training = findings["training"]
    rows = [row for row in read_metrics(out / "run") if "loss" in row]
    size = f"{training['parameters'] / 1e6:.1f} million parameters"
    said = (
        f"A flow-matching policy with {size}, {training['steps']} steps in {_duration(stage['seconds'])}. It predicts "
        f"{training['horizon']} actions and carries out {training['action_horizon']} of them before the next chunk."
    )
    curve = training_figure(rows)
    return section("2. Training", commands([stage["command"]]), paragraph(said), picture(curve, "Training loss."))


def _evaluate(out: Path, findings: dict[str, Any], stage: dict[str, Any]) -> str:
    content = json.loads((out / "eval" / "results.json").read_text())
    results = [EpisodeResult(**result) for result in content["results"]]
    solved = sum(r.success for r in results)
    low, high = (100 * v for v in findings["success_interval"])
    said = (
        f"Solved {solved} of {len(results)} episodes: {_percent(findings['success_rate'])}, 95 % Wilson interval "
        f"{low:.1f} to {high:.1f} %. The starts have seeds that no demonstration used. "
        f"{content['steps_per_s']:,.0f} control steps per second, inference included."
    )
    captions = {"best": "Best", "median": "Median", "worst": "Worst"}
    shown = [
        (out / "eval" / f"{name}.mp4", f"{captions[name]}: seed {film['seed']}, {_outcome(film)}")
        for name, film in content["videos"].items()
    ]
    figure = picture(evaluation_figure(results), "All episodes of the evaluation.")
    return section("3. Evaluation", commands([stage["command"]]), paragraph(said), films(shown), figure)


def _deploy(findings: dict[str, Any], stage: dict[str, Any]) -> str:
    deploy = findings["deploy"]
    said = (
        f"{deploy['rate_reached_hz']:.2f} Hz of {deploy['rate_asked_hz']:g} Hz asked; {deploy['ticks']} ticks, "
        f"{deploy['missed']} missed deadlines; {deploy['complete']} complete episodes, {deploy['successes']} solved. "
        "The world does not wait for the policy: each action has the time at which it takes effect."
    )
    parts = [paragraph(said)]
    if deploy["missed"] * 10 > deploy["ticks"]:
        parts.append(
            paragraph("The machine was too slow or too busy for real time here; run it again when it is idle.")
        )
    names = {
        "lateness": "Lateness of a control tick (jitter)",
        "world_step": "One step of the simulated world",
        "inference": "Inference of one chunk",
        "delay": "Capture of an observation to the first action made from it",
    }
    rows = [[text, *(_ms(deploy[key][f"{p}_ms"]) for p in ("p50", "p99", "max"))] for key, text in names.items()]
    timing = table(rows, ["", "median", "99 %", "largest"])
    return section("4. Real time", commands([stage["command"]]), *parts, timing)


def _provenance(findings: dict[str, Any]) -> str:
    rows = [[stage["name"], _duration(stage["seconds"])] for stage in findings["stages"]]
    facts = [["Machine", findings["machine"]], ["Versions", findings["versions"]], ["Date", findings["date"]]]
    note = "Latencies were measured while whatever else ran on this machine was running."
    return section("What was run, and on what", table(rows, ["stage", "time"]), table(facts), paragraph(note))


def _outcome(film: dict[str, Any]) -> str:
    if film["success"]:
        return f"solved after {film['success_step']} steps"
    return f"not solved in {film['length']} steps, score {film['score']:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
