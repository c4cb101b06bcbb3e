"""Bidirectional decoding picks the candidate that its formulas name; temporal ensembling weighs as ACT does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from policy_makers import TO, TP, actions, make, observation

from robolearn.policies.bid import backward_loss, bidirectional_decoding, forward_loss
from robolearn.policies.contracts import Prior
from robolearn.policies.ensembling import ensemble_weights, temporal_ensemble

N, B, T, A = 4, 3, 6, 2
START = TO - 1


def test_backward_loss_is_the_weighted_distance_over_the_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates, previous = torch.randn(N, B, T, A, generator=generator), torch.randn(B, T, A, generator=generator)
    weight = torch.ones(B, T)
    weight[:, 5] = 0
    previous[1, 3:] = float("nan")
    previous[2] = float("nan")
    found = backward_loss(candidates, previous, weight, 1, 0.5)
    for n in range(N):
        for b, overlap in enumerate(((1, 2, 3, 4), (1, 2), ())):
            expected = sum(0.5 ** (i - 1) * math.dist(candidates[n, b, i], previous[b, i]) for i in overlap)
            assert float(found[n, b]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_forward_loss_is_near_to_the_strong_and_far_from_the_weak() -> None:
    generator = torch.Generator().manual_seed(1)
    strong, weak = torch.randn(N, B, T, A, generator=generator), torch.randn(N, B, T, A, generator=generator)
    found = forward_loss(strong, weak)
    for n in range(N):
        for b in range(B):
            near = sum(math.dist(strong[n, b, i], strong[o, b, i]) for o in range(N) if o != n for i in range(T)) / N
            far = sum(math.dist(strong[n, b, i], weak[o, b, i]) for o in range(N) for i in range(T)) / N
            assert float(found[n, b]) == pytest.approx(near - far, rel=1e-4, abs=1e-4)


def candidates_of(seed: int, noise: torch.Tensor) -> torch.Tensor:
    model = make(seed=seed)
    with torch.no_grad():
        context = model.encode(observation())
        return torch.stack([model.sample(context, noise=one) for one in noise])


def test_the_chosen_chunk_is_the_candidate_with_the_least_loss() -> None:
    strong, weak = make(seed=0), make(seed=7)
    noise = torch.randn(N, 5, TP, 2, generator=torch.Generator().manual_seed(2))
    weight = torch.zeros(TP)
    weight[: START + 8] = 0.5  # compared, not frozen
    with torch.no_grad():
        contexts = strong.encode(observation()), weak.encode(observation())
        backward_only = bidirectional_decoding(strong, contexts[0], noise=noise, prior=Prior(actions(), weight))
        both = bidirectional_decoding(
            strong, contexts[0], noise=noise, prior=Prior(actions(), weight), weak=(weak, contexts[1])
        )
        first = bidirectional_decoding(strong, contexts[0], noise=noise)
    ours, theirs = candidates_of(0, noise), candidates_of(7, noise)
    back = backward_loss(strong.action(ours), strong.action(actions()), weight.expand(5, TP), START, 0.5)
    forward = forward_loss(strong.action(ours)[:, :, START:], strong.action(theirs)[:, :, START:])
    for b in range(5):
        torch.testing.assert_close(backward_only[b], ours[back[:, b].argmin(), b], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(both[b], ours[(back + forward)[:, b].argmin(), b], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(first, ours[0], rtol=1e-4, atol=1e-2)
    assert len(set(back.argmin(0).tolist())) > 1  # not the same candidate for all


def test_what_is_carried_out_meanwhile_is_returned_unchanged() -> None:
    model = make()
    weight = torch.zeros(TP)
    weight[:4], weight[4:9] = 1, 0.5
    known = actions()
    known[2] = float("nan")
    with torch.inference_mode():
        context = model.encode(observation())
        chunk = bidirectional_decoding(model, context, noise=torch.randn(N, 5, TP, 2), prior=Prior(known, weight))
    assert torch.equal(chunk[[0, 1, 3, 4], :4], known[[0, 1, 3, 4], :4])
    assert torch.isfinite(chunk).all()


def test_ensemble_weights_are_acts_with_the_oldest_heaviest() -> None:
    ages = [3, 2, 1, 0]
    by_hand = np.exp(-0.01 * np.arange(4))  # i = 0 is the oldest
    np.testing.assert_allclose(ensemble_weights(ages), by_hand / by_hand.sum())
    np.testing.assert_allclose(ensemble_weights(ages, m=0.0), 0.25)
    assert ensemble_weights([0, 8, 16]).argmax() == 2
    np.testing.assert_allclose(ensemble_weights([0, 8])[0] / ensemble_weights([0, 8])[1], math.exp(-0.08))


def test_temporal_ensemble_averages_the_chunks_that_reach_the_present() -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(6, 2)) for _ in range(4)]
    found = temporal_ensemble(chunks, [9, 4, 2, 0], start=1)
    weights = np.exp(-0.01 * np.array([0, 2, 4]))
    expected = np.average([chunks[1][5], chunks[2][3], chunks[3][1]], axis=0, weights=weights)
    assert found is not None
    np.testing.assert_allclose(found, expected)
    assert temporal_ensemble(chunks, [9, 5, 7, 8], start=1) is None
    assert temporal_ensemble([], [], start=1) is None


def test_one_prediction_is_returned_as_it_is() -> None:
    chunk = np.arange(12, dtype=np.float64).reshape(6, 2)
    found = temporal_ensemble([chunk], [3], start=1)
    assert found is not None
    np.testing.assert_array_equal(found, chunk[4])
