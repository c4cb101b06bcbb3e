"""Which action holds at an instant, and waiting for instants."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_deploy.chunks import Chunk, Refusals, action_times_ns, hold_action
from robolearn_deploy.plan import Commitment, EnsemblePlan, PlanTiming, ReplacePlan, WaitPlan
from robolearn_deploy.ticker import Ticker
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns

PERIOD = 100


def make_chunk(sequence: int, capture: int, *, start: int = 1, length: int = 4, episode: int = 0) -> Chunk:
    times = action_times_ns(capture, start, length, PERIOD)
    actions = np.stack([np.full(length, sequence), np.arange(length)], axis=1).astype(np.float32)
    return Chunk(sequence, episode, capture, times, actions, int(times[-1]) + PERIOD)


def place(chunk: Chunk) -> tuple[int, int]:
    """Of two chunks the one that is further in this order is the newer one, or the longer part of the same one."""
    return chunk.sequence, len(chunk.actions)


def plan_for(episode: int = 0) -> tuple[ReplacePlan, Refusals]:
    refusals = Refusals()
    plan = ReplacePlan(refusals)
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
        newest = max(map(place, taken), default=(-1, 0))
        valid = place(chunk) > newest and episode == 0 and not broken and now < chunk.expiry_ns
        offered += 1
        assert plan.offer(chunk, now) is valid
        if valid:
            taken.append(chunk)

        begun = [c for c in taken if c.times_ns[0] <= now]
        expected = None
        if begun:
            decides = max(begun, key=place)
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


def part_of(chunk: Chunk, actions: int) -> Chunk:
    times = chunk.times_ns[:actions]
    return replace(chunk, times_ns=times, actions=chunk.actions[:actions], expiry_ns=int(times[-1]) + PERIOD)


@pytest.mark.parametrize("kind", [ReplacePlan, EnsemblePlan])
def test_a_longer_part_of_a_chunk_takes_the_place_of_the_shorter_and_never_the_other_way_round(kind: type) -> None:
    refusals = Refusals()
    plan = kind(refusals)
    plan.begin(0)
    whole = make_chunk(0, 1000)
    assert plan.offer(part_of(whole, 2), 1000)
    assert plan.at(1100) is None
    assert plan.offer(whole, 1100)
    assert not plan.offer(part_of(whole, 3), 1100)
    assert not plan.offer(whole, 1100)
    planned = plan.at(1200)
    assert planned is not None
    assert planned.action.tolist() == [0, 3]
    assert refusals == Refusals(reordered=2)


def test_a_robot_that_waits_begins_a_chunk_when_it_comes_and_stops_after_so_many_actions() -> None:
    refusals = Refusals()
    plan = WaitPlan(refusals, PlanTiming(PERIOD, start=1, execute=2))
    plan.begin(0)
    chunk = make_chunk(0, 1000, length=6)
    assert plan.at(1000) is None
    assert plan.offer(part_of(chunk, 2), 5000)  # long after its time, for which the robot has waited
    first = plan.at(5010)
    assert first is not None
    assert first.index == 1
    assert plan.offer(chunk, 5050)
    following = plan.at(5110)  # the whole chunk goes on where its first part has begun
    assert following is not None
    assert following.index == 2
    assert plan.at(5210) is None
    assert plan.offer(make_chunk(1, 5200), 5300)
    again = plan.at(5310)
    assert again is not None
    assert (again.chunk.sequence, again.index) == (1, 1)
    assert refusals == Refusals()


def test_what_is_committed_is_what_was_done_then_the_newest_chunk_that_was_there_then_nothing() -> None:
    commitment = Commitment(PERIOD)
    times = action_times_ns(1400, 3, 8, PERIOD)  # 1100 to 1800
    assert commitment.on(times) is None
    commitment.follow(make_chunk(0, 1000, length=6), from_ns=1000)  # covers 900 to 1500
    commitment.follow(make_chunk(1, 1200, length=6), from_ns=1500)  # covers 1100 to 1700, there from 1500 on
    commitment.did(1200, np.array([7, 7], np.float32))
    known = commitment.on(times)
    assert known is not None
    # 1100: chunk 0; 1200: done; 1300, 1400: chunk 0, which was the newest then; 1500, 1600: chunk 1.
    assert known[:6].tolist() == [[0, 2], [7, 7], [0, 4], [0, 5], [1, 4], [1, 5]]
    assert np.isnan(known[6:]).all()
    commitment.begin()
    assert commitment.on(times) is None


def test_before_an_episode_s_first_action_that_one_stands_as_at_the_edges_of_training_windows() -> None:
    commitment = Commitment(PERIOD)
    commitment.did(1200, np.array([7, 7], np.float32))
    known = commitment.on(action_times_ns(1300, 3, 5, PERIOD))  # 1000 to 1400
    assert known is not None
    assert known[:3].tolist() == [[7, 7]] * 3
    assert np.isnan(known[3:]).all()


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
        at = now_ns() + 1_000_000_000  # a busy machine has the time to deliver it
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
