"""Moving pictures of a robot at 640x480, for benchmarks that need what cameras give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

CAMERAS = ("frontview", "robot0_eye_in_hand")
HEIGHT, WIDTH = 480, 640


Episode = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]
"""Pictures (T, 480, 640, 3) of each camera, states (T, ...), actions (T, 7)."""


def lift_episodes(episodes: int, *, noise: float = 0.0) -> Iterator[Episode]:
    """Episodes of Lift by its scripted expert.

    ``noise`` is the standard deviation of the sensor noise that is added, in units of the 8 bits.
    """
    from robolearn_sim.camera import choose_backend

    choose_backend()
    import mujoco

    from robolearn_sim.experts import make_expert
    from robolearn_sim.worlds import make_world

    world: Any = make_world("lift")
    model, data = world._model, world._data
    model.vis.global_.offheight, model.vis.global_.offwidth = HEIGHT, WIDTH
    renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    rng = np.random.default_rng(0)
    for seed in range(episodes):
        expert = make_expert("lift")
        observation = world.reset(seed)
        expert.reset(np.random.default_rng(seed))
        pictures: dict[str, list[np.ndarray]] = {name: [] for name in CAMERAS}
        states, actions = [], []
        done = False
        while not done:
            for name in CAMERAS:
                renderer.update_scene(data, camera=name)
                picture = renderer.render()
                if noise:
                    picture = np.clip(picture + rng.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
                pictures[name].append(picture.copy())
            action = expert.act(observation)
            states.append(observation["state"])
            actions.append(action)
            step = world.step(action)
            observation, done = step.observation, step.done
        yield {name: np.stack(frames) for name, frames in pictures.items()}, np.stack(states), np.stack(actions)
    renderer.close()
    world.close()
