#!/usr/bin/env bash
# Diffusion Policy's published networks for PushT on a GPU, in pieces of less than ten minutes.
#
#     tests/benchmarks/policies_gpu.sh pack           # where there is a network: wheels and data into .gpu/ (once)
#     tests/benchmarks/policies_gpu.sh state          # a piece: 65 M parameters, from states;    published 0.95 / 0.91
#     tests/benchmarks/policies_gpu.sh image          # a piece: 263 M parameters, from pictures; published 0.91 / 0.84
#
# IT HAS NOT RUN ON A GPU: none could be lent when it was written. On a CPU every part of it but "pack" and CUDA itself
# has run, with a tiny network:
#
#     SIZE=tiny DEVICE=cpu STEPS=20 EVERY=10 SECONDS_=60 EPISODES=2 RUNS=/tmp/gpu OUT=/tmp/gpu-out DATA=... policies_gpu.sh state
#
# A piece trains for SECONDS_, or goes on where the last one was, and evaluates the newest checkpoints on the device:
# score (largest coverage / 0.95, the published figure) and success over EPISODES starts from seed 100000. The state of
# the optimiser is four times the weights, 1 GB and more, which is more than comes back from a lent machine: so the
# pieces of one training follow each other while one machine is held, and what comes back (OUT) are figures: results of
# each checkpoint, metrics, the loss curve. In a session with 30 minutes: three pieces of one size.
#
#     run(carry=[".gpu"], command="tests/benchmarks/policies_gpu.sh state", timeout_s=600)
#
# Variables: OUT (what comes back), RUNS (/tmp/policies-gpu), DATA, DEVICE (cuda), SECONDS_ (400), EPISODES (50),
# EVALUATED (2 newest checkpoints), STEPS of the whole training, over which the learning rate falls (state: 60000,
# image: 15000; published: 400000 and 800000, hours), EVERY (steps between checkpoints: 5000, 2500), SEED (0),
# PYTHON (python3), SIZE (published, or tiny).
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:?"pack, state or image"}
python=${PYTHON:-python3}
packed=$PWD/.gpu
export PYTHONPATH=$PWD:$PWD/data:$PWD/hardware:$PWD/sim:$PWD/deploy${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 SDL_VIDEODRIVER=dummy
# Beside torch, numpy, pyarrow, h5py, pydantic, rich, safetensors, transformers and matplotlib, which the machine has.
# Left out for their size, 100 MB, and because nothing here needs them: av, imagecodecs.
wheels="zarr numcodecs donfig google-crc32c diffusers tyro docstring-parser shtab typeguard pymunk cffi pycparser
pygame simplejpeg websockets"

if [ "$what" = pack ]; then
    exclude=$(git rev-parse --git-path info/exclude)
    grep -qxF /.gpu/ "$exclude" || echo /.gpu/ >>"$exclude"
    mkdir -p "$packed/wheels"
    constraints=$(grep -iE "^($(echo $wheels | tr ' ' '|'))==" constraints.txt || true)
    for name in $wheels; do
        pinned=$(echo "$constraints" | grep -iE "^$name==" || echo "$name")
        "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
            --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$packed/wheels" "$pinned" ||
            echo "no wheel of $pinned: leave it out if the first piece starts without it"
    done
    [ -e "$packed/human.zarr" ] || "$python" -m robolearn.cli.main data import \
        "${DATA:-../shared/datasets/pusht_cchi_v7_replay.zarr}" "$packed/human.zarr" --format diffusion_policy
    "$python" -m pip wheel -q --no-deps -w "$packed/wheels" . # zarr finds our codecs through its entry points
    du -sh "$packed" # at most 64 MiB travel, the working tree among them
    exit
fi

case $what in
state) preset=pusht-state-published steps=${STEPS:-60000} every=${EVERY:-5000} ;;
image) preset=pusht-image-published steps=${STEPS:-15000} every=${EVERY:-2500} ;;
*) echo "$what: pack, state or image" >&2; exit 2 ;;
esac
run=${RUNS:-/tmp/policies-gpu}/$what
out=${OUT:-$PWD/.gpu/out}
device=${DEVICE:-cuda}
data=${DATA:-$packed/human.zarr}
mkdir -p "$run" "$out"
if compgen -G "$packed/wheels/*.whl" >/dev/null; then
    [ -d /tmp/policies-gpu-site ] || "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target /tmp/policies-gpu-site "$packed"/wheels/*.whl
    export PYTHONPATH=$PYTHONPATH:/tmp/policies-gpu-site
fi

words=(train "$data" --out "$run" --device "$device")
if [ -e "$run/training.safetensors" ]; then
    words+=(--resume)
else
    rm -f "$run"/config.yaml "$run"/metrics.jsonl "$run"/loss.png # of a piece that was stopped before its first state
    words+=(--preset "$preset" --steps "$steps" --checkpoint-every "$every" --seed "${SEED:-0}")
    [ "${SIZE:-published}" = published ] || words+=(--policy.trunk.widths 16 32 --batch-size 8)
    [ "$device" = cpu ] || words+=(--precision bf16)
fi
# Stopped at the end of its time it loses what came after its last state, and nothing else.
timeout --signal=TERM "${SECONDS_:-400}" "$python" -m robolearn.cli.main "${words[@]}" 2>&1 | tail -n 20 |
    tee -a "$out/train.log" || true
cp -f "$run"/metrics.jsonl "$run"/config.yaml "$out"/ 2>/dev/null || true
cp -f "$run"/loss.png "$out"/ 2>/dev/null || true

"$python" - "$run" "$device" "${EPISODES:-50}" "${EVALUATED:-2}" "$out/results-$what.json" <<'PYTHON'
import functools
import json
import sys
import time
from pathlib import Path

from robolearn.evaluation import evaluate
from robolearn.evaluation.machine import machine
from robolearn.policies.checkpoint import list_checkpoints, load_policy
from robolearn_sim.worlds import make_world

run, device, episodes, newest = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
out = Path(sys.argv[5])
checkpoints = list_checkpoints(run)
if not checkpoints:
    sys.exit(f"{run} holds no checkpoint yet: more SECONDS_, or a smaller EVERY")
for checkpoint in checkpoints[-newest:]:
    cache = checkpoint / f"evaluated-{episodes}.json"
    if cache.exists():
        continue
    began, load = time.monotonic(), functools.partial(load_policy, checkpoint, device)
    images = {"images": True} if "img" in load().spec.observation else {}
    make = functools.partial(make_world, "pusht", **images)
    result = evaluate(load, make, range(100_000, 100_000 + episodes), workers=0, envs_per_worker=episodes)
    row = {"step": int(checkpoint.name), "score": result.score, "success": result.success_rate, "episodes": episodes}
    row |= {"score_interval": list(result.score_interval), "success_interval": list(result.success_interval)}
    cache.write_text(json.dumps(row | {"seconds": round(time.monotonic() - began, 1)}))
    print(cache.read_text(), flush=True)
rows = [json.loads(path.read_text()) for path in sorted(run.glob("checkpoints/*/evaluated-*.json"))]
scores = [row["score"] for row in rows]
found = {"machine": machine(), "device": device, "max": max(scores), "mean": sum(scores) / len(scores), "rows": rows}
out.write_text(json.dumps(found, indent=1) + "\n")
print(f"{out}: best {found['max']:.3f}, mean of {len(rows)} checkpoints {found['mean']:.3f}")
PYTHON
