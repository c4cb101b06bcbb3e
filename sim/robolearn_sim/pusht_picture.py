"""Draws PushT pixel by pixel as the published human demonstrations show it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pymunk

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

SIZE = 512
SMALL = 96
GOAL = (144, 238, 144)
WALL = (211, 211, 211, 255)
AGENT = (65, 105, 225, 255)
BLOCK = (119, 136, 153, 255)
CROSS = (220, 0, 0)

Colour = tuple[int, int, int]


class Picture:
    """A canvas that is drawn on again and again: new memory for every picture would cost more than drawing."""

    def __init__(self, goal: Sequence[Sequence[tuple[float, float]]]) -> None:
        """``goal``: polygons of the target zone."""
        memory = bytearray(SIZE * SIZE * 4)  # four bytes a pixel: pygame's smooth lines write past three-byte ones
        self._surface = pygame.image.frombuffer(memory, (SIZE, SIZE), "RGBX")  # shares the memory
        self._pixels = np.frombuffer(memory, np.uint8).reshape(SIZE, SIZE, 4)
        self._pen = _Pen(self._surface)
        self._goal = [[_pixel(p) for p in polygon] for polygon in goal]

    def draw(self, space: pymunk.Space, target: tuple[float, float] | None = None) -> np.ndarray:
        """Draw target zone, bodies and contacts: (512, 512, 3) uint8.

        ``target``: where to put a red cross, if anywhere.
        """
        self._paint(space, target)
        return self._pixels[:, :, :3].copy()

    def draw_small(self, space: pymunk.Space) -> np.ndarray:
        """The same as (96, 96, 3) uint8, each pixel interpolated between the four nearest, without smoothing."""
        self._paint(space, None)
        pixels = self._pixels.view(np.uint32).ravel()  # whole pixels are gathered faster than channels
        total = np.full((SMALL, SMALL, 4), 18, np.uint16)  # half of 36, to round
        for index, weight in _CORNERS:
            total += pixels[index].view(np.uint8).reshape(SMALL, SMALL, 4) * weight
        return (total[:, :, :3] // 36).astype(np.uint8)

    def _paint(self, space: pymunk.Space, target: tuple[float, float] | None) -> None:
        self._surface.fill((255, 255, 255))
        for polygon in self._goal:
            pygame.draw.polygon(self._surface, GOAL, polygon)
        space.debug_draw(self._pen)
        if target is not None:
            x, y = _pixel(target)
            for dy in (16, -16):
                pygame.draw.line(self._surface, CROSS, (x - 16, y - dy), (x + 16, y + dy), 5)


# Centres of small pixels lie at sixths of a pixel of the large picture: (i + 1/2) 512/96 - 1/2 = (32 i + 13) / 6.
_LOW, _SIXTHS = np.divmod(32 * np.arange(SMALL) + 13, 6)
_CORNERS = tuple(  # of each small pixel: index into the large picture as one row of pixels, weight in 36ths
    ((_LOW[:, None] + down) * SIZE + _LOW + right, np.outer(w_row, w_column).astype(np.uint16)[:, :, None])
    for down, w_row in ((0, 6 - _SIXTHS), (1, _SIXTHS))
    for right, w_column in ((0, 6 - _SIXTHS), (1, _SIXTHS))
)


class _Pen(pymunk.SpaceDebugDrawOptions):
    """What pymunk calls for each shape and contact, in its own order."""

    def __init__(self, surface: pygame.Surface) -> None:
        super().__init__()
        self._surface = surface

    def draw_circle(self, pos, angle, radius, outline_color, fill_color) -> None:
        pygame.draw.circle(self._surface, _colour(fill_color), _pixel(pos), round(radius))
        pygame.draw.circle(self._surface, _light(fill_color), _pixel(pos), round(radius - 4))

    def draw_polygon(self, verts, radius, outline_color, fill_color) -> None:
        points = [_pixel(v) for v in verts]
        pygame.draw.polygon(self._surface, _light(fill_color), points)
        for a, b in zip(points, points[1:] + points[:1], strict=True):
            self._thick_line(a, b, 2.0, _colour(fill_color))

    def draw_fat_segment(self, a, b, radius, outline_color, fill_color) -> None:
        self._thick_line(_pixel(a), _pixel(b), radius, _colour(fill_color))

    def draw_segment(self, a, b, color) -> None:
        pygame.draw.aaline(self._surface, _colour(color), _pixel(a), _pixel(b))

    def draw_dot(self, size, pos, color) -> None:
        pygame.draw.circle(self._surface, _colour(color), _pixel(pos), round(size))

    def _thick_line(self, a: tuple[int, int], b: tuple[int, int], radius: float, colour: Colour) -> None:
        pygame.draw.line(self._surface, colour, a, b, round(2 * radius))
        dx, dy = abs(b[1] - a[1]), abs(b[0] - a[0])  # without signs, as in the recorded pictures
        length = float(np.hypot(dx, dy))
        if length == 0:
            return
        u, v = round(dx * radius / length), round(dy * radius / length)
        edge = [(a[0] - u, a[1] - v), (a[0] + u, a[1] + v), (b[0] + u, b[1] + v), (b[0] - u, b[1] - v)]
        pygame.draw.polygon(self._surface, colour, edge)
        for end in (a, b):
            pygame.draw.circle(self._surface, colour, end, round(radius))


def _pixel(point: Sequence[float]) -> tuple[int, int]:
    return round(point[0]), round(point[1])


def _colour(colour) -> Colour:
    return int(colour[0]), int(colour[1]), int(colour[2])


def _light(colour) -> Colour:
    return min(255, int(1.2 * colour[0])), min(255, int(1.2 * colour[1])), min(255, int(1.2 * colour[2]))
