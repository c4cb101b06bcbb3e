"""Which action holds at an instant, and waiting for instants."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_deploy.chunks import Chunk, NaivePlan, Refusals, action_times_ns, hold_action
from robolearn_deploy.ticker import Ticker
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns

PERIOD = 100


def make_chunk(sequence: int, capture: int, *, start: int = 1, length: int = 4, episode: int = 0) -> Chunk:
    times = action_times_ns(capture, start, length, PERIOD)
    actions = np.stack([np.full(length, sequence), np.arange(length)], axis=1).astype(np.float32)
    return Chunk(sequence, episode, capture, times, actions, int(times[-1]) + PERIOD)


def plan_for(episode: int = 0) -> tuple[NaivePlan, Refusals]:
    refusals = Refusals()
    plan = NaivePlan(refusals)
    plan.begin(episode)
    return plan, refusals


def test_action_start_takes_effect_at_the_capture_and_the_others_a_period_apart() -> None:
    assert action_times_ns(1000, 1, 4, PERIOD).tolist() == [900, 1000, 1100, 1200]


def test_an_action_holds_from_its_time_to_the_next_and_the_last_one_to_the_expiry() -> None:
    chunk = make_chunk(0, 1000)
    instants = {899: None, 900: 0, 999: 0, 1000: 1, 1199: 2, 1200: 3, 1299: 3, 1300: None}
    assert {t: chunk.index_at(t) for t in instants} == instants


arrivals = st.lists(
    st.tuples(
        st.integers(0, 30),  # sequence
        st.integers(0, 2000),  # capture
        st.integers(0, 3),  # start
        st.integers(1, 8),  # length
        st.integers(0, 150),  # time since the arrival before
        st.sampled_from([0, 0, 0, 0, 1]),  # episode
        st.sampled_from([False, False, False, True]),  # holds NaN
    ),
    max_size=30,
)


@settings(max_examples=500, deadline=None)
@given(arrivals)
def test_the_newest_chunk_that_has_begun_decides_whatever_the_order_and_lateness_of_arrivals(arriving: list) -> None:
    plan, refusals = plan_for(episode=0)
    taken: list[Chunk] = []
    now = offered = 0
    for sequence, capture, start, length, wait, episode, broken in arriving:
        now += wait
        chunk = make_chunk(sequence, capture, start=start, length=length, episode=episode)
        if broken:
            chunk.actions[length // 2, 1] = np.nan
        newest = max((c.sequence for c in taken), default=-1)
        valid = sequence > newest and episode == 0 and not broken and now < chunk.expiry_ns
        offered += 1
        assert plan.offer(chunk, now) is valid
        if valid:
            taken.append(chunk)

        begun = [c for c in taken if c.times_ns[0] <= now]
        expected = None
        if begun:
            decides = max(begun, key=lambda c: c.sequence)
            if now < decides.expiry_ns:
                expected = (decides.sequence, int((now - decides.times_ns[0]) // PERIOD))
                expected = (decides.sequence, min(expected[1], len(decides.actions) - 1))
        planned = plan.at(now)
        assert (planned and tuple(int(v) for v in planned.action)) == expected
        assert planned is None or np.isfinite(planned.action).all()
    assert len(taken) + sum(vars(refusals).values()) == offered


def test_a_late_chunk_loses_its_past_actions_and_does_not_shift_the_others() -> None:
    plan, _ = plan_for()
    plan.offer(make_chunk(0, 1000), now_ns=1000)
    plan.offer(make_chunk(1, 1000), now_ns=1250)
    planned = plan.at(1250)
    assert planned is not None
    assert (planned.chunk.sequence, planned.index) == (1, 3)


def test_a_chunk_of_nan_is_counted_and_the_plan_before_it_stays() -> None:
    plan, refusals = plan_for()
    plan.offer(make_chunk(0, 1000), now_ns=1000)
    broken = make_chunk(1, 1000)
    broken.actions[0, 0] = np.inf
    assert not plan.offer(broken, now_ns=1000)
    planned = plan.at(1000)
    assert planned is not None
    assert planned.chunk.sequence == 0
    assert refusals == Refusals(non_finite=1)


def test_a_new_episode_forgets_the_plan_of_the_one_before() -> None:
    plan, refusals = plan_for()
    plan.offer(make_chunk(0, 1000), now_ns=1000)
    plan.begin(1)
    assert plan.at(1000) is None
    plan.offer(make_chunk(1, 1000, episode=0), now_ns=1000)
    assert refusals == Refusals(foreign=1)


def test_holding_stops_what_is_relative_and_keeps_targets() -> None:
    last = np.array([0.3, -0.2, 1.0], np.float32)
    assert hold_action(last, (0, 1)).tolist() == [0, 0, 1]
    assert hold_action(last, ()).tolist() == last.tolist()


def test_waiting_for_an_instant_never_returns_before_it() -> None:
    for ahead_ns in (-1_000_000, 0, 1, 50_000, 3_000_000):
        at = now_ns() + ahead_ns
        wait_until_ns(at)
        assert now_ns() >= at


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_a_signal_is_handled_during_the_wait_and_does_not_shorten_it() -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: seen.append(now_ns()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        at = now_ns() + 100_000_000
        wait_until_ns(at)
        assert now_ns() >= at
        assert len(seen) == 1
        assert seen[0] < at
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_ticks_keep_to_the_grid_and_the_lost_ones_are_counted() -> None:
    period = period_ns(100)
    start = now_ns() + period
    ticker = Ticker(start, period)
    ticks = [ticker.wait() for _ in range(3)]
    time.sleep(0.035)  # three deadlines pass
    ticks += [ticker.wait() for _ in range(2)]
    for tick in ticks:
        assert (tick.due_ns - start) % period == 0
        assert tick.woke_ns >= tick.due_ns
    served = 1 + (ticks[-1].due_ns - start) // period - len(ticks)
    late_themselves = sum(t.missed > 0 for t in ticks)
    assert sum(t.missed for t in ticks) == served + late_themselves
    assert ticks[3].missed >= 3
