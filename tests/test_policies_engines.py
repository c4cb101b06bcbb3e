"""Engines compute what torch computes, nothing else changes, and what they keep on disk can do no harm."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_policies import make, observation

from robolearn.policies.checkpoint import load_policy, save_policy
from robolearn.policies.contracts import Context, Prior
from robolearn.policies.engines.compiled import EngineName, chunk_difference, compile_policy
from robolearn.policies.engines.errors import EngineError
from robolearn.policies.engines.graphs import example_observation
from robolearn.policies.engines.threads import CoresError, cores_without, parse_cores, use_threads
from robolearn.policies.engines.timing import Timed
from robolearn.policies.policy import Policy
from robolearn.policies.trunks.transformer import TransformerConfig

EXPORTED: list[EngineName] = ["onnx", "openvino"]
POLICIES = [("flow", "unet1d", True), ("diffusion", "transformer", False), ("meanflow", "unet1d", False)]
T, A = 16, 2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exporting takes seconds: each policy of this file is exported once. Tests that write get folders of their own."""
    return tmp_path_factory.mktemp("engines")


def frozen(objective: str = "flow", trunk: str = "unet1d", *, image: bool = False, seed: int = 0) -> Policy:
    return make(objective, trunk, image=image, seed=seed).requires_grad_(False)


def tiny(seed: int = 0) -> Policy:
    """The least that can be exported, where it does not matter what."""
    policy = frozen()
    config = replace(policy.config, trunk=TransformerConfig(width=8, layers=1, heads=1))
    torch.manual_seed(seed)
    policy = Policy(policy.spec, policy.statistics, config).eval().requires_grad_(False)
    torch.nn.init.normal_(policy.get_parameter("trunk.head.weight"))
    return policy


def noise(batch: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(batch, T, A, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-5 * b.abs().max().clamp(min=1)).all())


@pytest.mark.parametrize("engine", EXPORTED)
@pytest.mark.parametrize(("objective", "trunk", "image"), POLICIES)
def test_an_engine_encodes_denoises_and_samples_what_torch_does_at_every_batch_size_and_time_per_token(
    engine: EngineName, objective: str, trunk: str, image: bool, cache: Path
) -> None:
    policy = frozen(objective, trunk, image=image)
    fast = compile_policy(policy, engine, batches=(1, 5), per_token=True, cache=cache / f"{objective}-{trunk}")
    for batch in (1, 2, 5):
        seen = {name: value[:batch] for name, value in observation(image=image).items()}
        context = policy.encode(seen)
        assert close(fast.encode(seen).tokens, context.tokens)
        x = noise(batch)
        for t in (torch.full((batch, 1), 0.4), torch.linspace(0.1, 0.9, T).expand(batch, T)):
            assert close(fast.denoise(x, t, context), policy.denoise(x, t, context))
        prior = Prior(policy.sample(context, noise=x), torch.linspace(1, 0, T))
        for with_prior in (None, prior):
            want = policy.sample(context, noise=noise(batch, 4), steps=4, prior=with_prior)
            got = fast.sample(fast.encode(seen), noise=noise(batch, 4), steps=4, prior=with_prior)
            assert float((policy.action(got) - policy.action(want)).abs().max()) / 2 <= 1e-5


@pytest.mark.parametrize("engine", EXPORTED)
def test_the_result_of_one_call_is_not_written_over_by_the_next(engine: EngineName, cache: Path) -> None:
    policy = frozen(image=True)
    fast = compile_policy(policy, engine, cache=cache / "flow-unet1d")
    context = Context(policy.encode(observation(image=True)).tokens[:1])
    with torch.inference_mode():
        first = fast.trunk(noise(1), torch.zeros(1, 1), context)
        kept = first.clone()
        fast.trunk(noise(1, 9), torch.zeros(1, 1), context)
    assert torch.equal(first, kept)


def test_what_was_not_prepared_is_made_when_it_is_asked_for_in_inference_mode_too() -> None:
    policy = tiny()
    fast = compile_policy(policy, "onnx")
    with torch.inference_mode():
        context = policy.encode(observation())
        t = torch.linspace(0.1, 0.9, T).expand(5, T)
        assert close(fast.denoise(noise(5), t, context), policy.denoise(noise(5), t, context))


@pytest.mark.parametrize("engine", EXPORTED)
def test_gradients_through_the_denoiser_are_those_of_torch(engine: EngineName, cache: Path) -> None:
    policy = frozen(image=True)
    fast = compile_policy(policy, engine, cache=cache / "flow-unet1d")
    context = policy.encode(observation(image=True))
    t, cotangent = torch.full((5, 1), 0.3), noise(5, 7)
    x = noise(5).requires_grad_()
    (want,) = torch.autograd.grad(policy.denoise(x, t, context), x, cotangent)
    (got,) = torch.autograd.grad(fast.denoise(x, t, context), x, cotangent)
    assert close(got, want)
    output, back = torch.func.vjp(lambda x: fast.denoise(x, t, context), noise(5))[:2]
    assert close(output, policy.denoise(noise(5), t, context))
    assert close(back(cotangent)[0], want)


def test_the_observation_is_encoded_once_for_all_steps_and_candidates(cache: Path) -> None:
    policy = frozen(image=True)
    for one in (policy, compile_policy(policy, "onnx", cache=cache / "flow-unet1d")):
        encoded: list[str] = []
        stepped: list[str] = []
        one.encoder.register_forward_hook(lambda *_, to=encoded: to.append("encoder"))
        one.trunk.register_forward_hook(lambda *_, to=stepped: to.append("trunk"))
        context = one.encode({name: value[:1] for name, value in observation(image=True).items()})
        one.sample(Context(context.tokens.expand(16, -1, -1)), noise=noise(16), steps=7)
        assert (len(encoded), len(stepped)) == (1, 7)


def test_pixels_between_whole_numbers_are_not_rounded_for_an_engine_made_for_bytes(cache: Path) -> None:
    policy = frozen(image=True)
    fast = compile_policy(policy, "onnx", cache=cache / "flow-unet1d")
    seen = observation(image=True)
    seen["img"] = seen["img"].float() * 0.999
    assert close(fast.encode(seen).tokens, policy.encode(seen).tokens)


def test_a_checkpoint_keeps_its_exported_network_and_needs_no_exporter_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tiny(), tmp_path / "checkpoint")
    cache = tmp_path / "checkpoint" / "engines"
    told: list[tuple[int, int]] = []
    policy = load_policy(tmp_path / "checkpoint")
    compile_policy(policy, "onnx", cache=cache, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 1), (1, 1)]
    (file,) = cache.iterdir()
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # pyright: ignore[reportArgumentType]
    fast = compile_policy(load_policy(tmp_path / "checkpoint"), "onnx", cache=cache)
    assert chunk_difference(policy, fast) <= 1e-5
    with pytest.raises(EngineError, match=r"onnxscript.*robolearn\[onnx\]"):
        compile_policy(policy, "onnx")
    assert list(cache.iterdir()) == [file]


def test_a_damaged_or_wrong_exported_file_is_replaced(tmp_path: Path) -> None:
    policy, other = tiny(), tiny(1)
    compile_policy(other, "onnx", cache=tmp_path)
    (of_other,) = tmp_path.iterdir()
    wrong = of_other.read_bytes()
    compile_policy(policy, "onnx", cache=tmp_path)
    (file,) = tmp_path.iterdir()  # that of the former weights is gone
    right = file.read_bytes()
    for content in (wrong, right[: len(right) // 2]):
        file.write_bytes(content)
        assert chunk_difference(policy, compile_policy(policy, "onnx", cache=tmp_path)) <= 1e-5
        assert file.stat().st_size == len(right)
    assert [path.suffix for path in tmp_path.iterdir()] == [".onnx"]


def test_a_folder_that_cannot_be_written_to_keeps_nothing_and_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    policy = tiny()
    assert chunk_difference(policy, compile_policy(policy, "onnx", cache=tmp_path / "file" / "engines")) <= 1e-5


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_an_engine_that_errs_by_more_than_the_tolerance_is_refused(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"onnx": lambda graph, _: lambda *inputs: graph.module(*inputs) + error}
    monkeypatch.setattr("robolearn.policies.engines.compiled.BACKENDS", wrong)
    with pytest.raises(EngineError, match="differs from torch by"):
        compile_policy(frozen(), "onnx")


def test_mistakes_are_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = frozen()
    assert compile_policy(policy, "torch") is policy
    with pytest.raises(EngineError, match="valid: torch, compile, onnx, openvino"):
        compile_policy(policy, "tensorrt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="eval"):
        compile_policy(frozen().train(), "onnx")
    missing: list[tuple[EngineName, str]] = [("onnx", "onnxruntime"), ("openvino", "openvino")]
    for engine, package in missing:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # pyright: ignore[reportArgumentType]
            with pytest.raises(EngineError, match=rf"pip install 'robolearn\[{engine}\]'"):
                compile_policy(policy, engine)
    with pytest.raises(EngineError, match="--device cpu"):
        compile_policy(frozen().to("meta"), "onnx")


@pytest.mark.slow
def test_torch_compile_gives_the_same_and_compiles_nothing_more_in_the_middle_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    policy = tiny()
    fast = compile_policy(policy, "compile")
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled >= 1
    context = Context(policy.encode(observation()).tokens[:1])
    want = policy.sample(context, noise=noise(1))
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            chunk = fast.sample(fast.encode({"state": observation()["state"][:1]}), noise=noise(1))
            assert close(policy.action(chunk), policy.action(want))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_example_observations_lie_where_the_training_data_lay() -> None:
    seen = example_observation(frozen(image=True), 50)
    assert seen["img"].dtype == torch.uint8
    assert (seen["img"].min(), seen["img"].max()) == (0, 255)
    state = seen["state"].flatten(0, 1)
    assert bool((state >= 0).all())
    assert bool((state <= torch.tensor([100, 200, 6.3])).all())
    assert bool((state.max(0).values - state.min(0).values > 0.8 * torch.tensor([100, 200, 6.3])).all())


ISOLATED = """
import os, sys
from pathlib import Path
import torch
from test_policies import make
from robolearn.policies.engines.compiled import compile_policy
from robolearn.policies.engines.threads import use_threads
core = max(os.sched_getaffinity(0))
torch.randn(300, 300) @ torch.randn(300, 300)  # threads that are there already
use_threads(1, {core})
policy = make("diffusion", "transformer").requires_grad_(False)
for engine in ("onnx", "openvino"):
    fast = compile_policy(policy, engine, cache=Path(sys.argv[1]))
assert {frozenset(os.sched_getaffinity(int(t.name))) for t in Path("/proc/self/task").iterdir()} == {frozenset({core})}
assert torch.get_num_threads() == 1
assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)
assert not (Path.home() / "intel").exists()
print("isolated")
"""


def test_a_policy_process_stays_on_its_cores_and_calls_nobody(cache: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": paths, "CI": ""}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(ISOLATED), str(cache / "transformer")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "isolated", done.stderr


@given(st.sets(st.integers(0, 300), min_size=1))
def test_cores_are_read_as_a_list_or_as_ranges(cores: set[int]) -> None:
    assert parse_cores(",".join(map(str, cores))) == cores
    assert parse_cores(f"{min(cores)}-{max(cores)}") == set(range(min(cores), max(cores) + 1))


@pytest.mark.parametrize("text", ["", "a", "1,", "3-1", "-1", "1-2-3", "0x1"])
def test_other_texts_are_not_cores(text: str) -> None:
    with pytest.raises(CoresError, match="0,2-3"):
        parse_cores(text)


def test_cores_that_do_not_exist_or_are_all_reserved_are_refused() -> None:
    allowed = os.sched_getaffinity(0)
    assert cores_without({max(allowed) + 1}) == allowed
    with pytest.raises(CoresError, match="none is left"):
        cores_without(allowed)
    for cores in ({100_000}, {-1}, set[int]()):
        with pytest.raises(CoresError, match="cannot run on"):
            use_threads(1, cores)
    with pytest.raises(CoresError, match="1 or more"):
        use_threads(0)
    assert os.sched_getaffinity(0) == allowed


def test_times_of_parts_add_up_within_an_inference_and_give_percentiles_over_the_last_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10_000_000_000, 1_000_000))  # a millisecond for each look
    monkeypatch.setattr("robolearn.policies.engines.timing.time.monotonic_ns", lambda: next(clock))
    timed = Timed(window=3)
    with timed("total"):
        for _ in range(2):
            with timed("sample"):
                pass
    assert timed.take() == {"sample": 2.0, "total": 5.0}
    timed.clear()
    totals = []
    for looks in (9, 4, 3, 8):
        with timed("total"):
            for _ in range(looks):
                next(clock)
        totals.append(timed.take()["total"])
    assert totals == [10.0, 5.0, 4.0, 9.0]
    assert timed.percentiles() == {"total": tuple(np.percentile([5.0, 4.0, 9.0], (50, 99)))}
