"""The synthetic world: the content of a clip, and its rendering.

A clip shows one or two actors (or several still objects to count) on a plain background. As an unordered set of frames, every
action looks like its reverse: left and right, up and down, growing and shrinking, appearing and disappearing, A then B and B then
A, red turning blue and blue turning red. Only the order of the frames distinguishes them, so right answers show that a model uses
time.
"""

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128  # pixels of a clip's side
NUM_FRAMES = 16  # of a clip
FRAMES_PER_SECOND = 8
COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 100, 240),
    "yellow": (240, 215, 60),
    "purple": (165, 60, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "star")
SIZES = {"small": 15.0, "large": 24.0}  # radius in pixels
GROUNDS = ((16, 16, 20), (52, 52, 58), (40, 30, 24), (22, 36, 44))
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "still")
ACTIONS = (*MOTIONS, "appearing", "disappearing", "first", "second", "turning")
REVERSED = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "growing": "shrinking",
    "shrinking": "growing",
    "appearing": "disappearing",
    "disappearing": "appearing",
    "first": "second",
    "second": "first",
    "turning": "turning",
    "still": "still",
}
SCENES = (
    "motion",
    "appearance",
    "order",
    "motion",
    "change",
    "count",
)  # cycled; motion occurs twice as it is the hardest


@dataclass(frozen=True)
class Actor:
    """An object and its action. Positions and radii in pixels of the clip, times from 0 to 1."""

    shape: str
    colour: str
    size: str  # small | large
    action: str  # of ACTIONS
    start: tuple[float, float]
    end: tuple[float, float]
    moment: tuple[float, float] = (0.0, 1.0)  # when it is visible, or when it changes colour
    colour_after: str = ""  # of an actor that changes colour

    def radius(self, time: float) -> float:
        if self.action == "growing":
            return 10.0 + 18.0 * time
        if self.action == "shrinking":
            return 28.0 - 18.0 * time
        return SIZES[self.size]

    def centre(self, time: float) -> tuple[float, float]:
        (x, y), (u, v) = self.start, self.end
        return x + (u - x) * time, y + (v - y) * time

    def visible(self, time: float) -> bool:
        return self.action == "turning" or self.moment[0] <= time <= self.moment[1]

    def colour_at(self, time: float) -> str:
        return self.colour_after if self.action == "turning" and time > self.moment[0] else self.colour

    def box(self) -> tuple[float, float, float, float]:
        """Bounding box over the whole clip: left, top, right, bottom."""
        radius = max(self.radius(0.0), self.radius(1.0))
        (x, y), (u, v) = self.start, self.end
        return min(x, u) - radius, min(y, v) - radius, max(x, u) + radius, max(y, v) + radius


@dataclass(frozen=True)
class Scene:
    kind: str  # of SCENES
    actors: tuple[Actor, ...]  # the first one acts; for "order" the first two, in the order of appearance
    ground: tuple[int, int, int]


def is_held_out(actor: Actor) -> bool:
    """Whether this combination of shape, colour and action is held out; each pair of them is still in training.

    Still objects are never held out: among them, a missing combination would be a missing pair of shape and colour, and a model
    would learn to rule it out.
    """
    if actor.action == "still":
        return False
    number = SHAPES.index(actor.shape) + 2 * list(COLOURS).index(actor.colour) + 3 * ACTIONS.index(actor.action)
    return number % 7 == 0


def draw_scene(random: Random, kind: str, held_out: bool) -> Scene:
    """A random scene. With `held_out`, its first actor is a held-out combination if there is an action; without, no actor
    is.
    """
    while True:
        scene = _draw(random, kind)
        if scene is None:
            continue
        flags = [is_held_out(actor) for actor in scene.actors]
        if kind == "count" or (flags[0] if held_out else not any(flags)):
            return scene


def draw_picture(random: Random) -> Scene:
    """One or two still objects that differ in shape and colour."""
    while True:
        actors = [_still(random) for _ in range(random.randint(1, 2))]
        scene = _checked("picture", actors, random.choice(GROUNDS))
        if scene is not None:
            return scene


def place_name(centre: tuple[float, float]) -> str:
    """The name of a position, on a grid of three by three."""
    x, y = centre
    rows = "top" if y < SIDE / 3 else "bottom" if y > 2 * SIDE / 3 else ""
    columns = "left" if x < SIDE / 3 else "right" if x > 2 * SIDE / 3 else ""
    return f"at the {' '.join(filter(None, (rows, columns)))}" if rows or columns else "in the middle"


def _draw(random: Random, kind: str) -> Scene | None:
    ground = random.choice(GROUNDS)
    if kind == "count":
        number = random.randint(1, 5)
        actors = [_still(random) for _ in range(number)]
        if (
            random.random() < 0.5
        ):  # half of the time several objects share a shape or colour, so that they can be counted
            shape, colour = random.choice(SHAPES), random.choice(list(COLOURS))
            alike = random.randint(1, number)
            for place in range(alike):
                alike_in_shape = random.random() < 0.5
                actors[place] = replace(
                    actors[place],
                    shape=shape if alike_in_shape else actors[place].shape,
                    colour=actors[place].colour if alike_in_shape else colour,
                )
    elif kind == "motion":
        actors = [_mover(random, random.choice(MOTIONS))]
        if random.random() < 0.6:
            actors.append(_still(random))
    elif kind == "appearance":
        there = random.random() < 0.5
        moment = random.uniform(0.3, 0.7)
        span = (moment, 1.0) if there else (0.0, moment)
        actors = [replace(_still(random), action="appearing" if there else "disappearing", moment=span)]
        if random.random() < 0.6:
            actors.append(_still(random))
    elif kind == "order":
        gap = random.uniform(0.42, 0.58)
        first, second = (random.uniform(0.0, 0.12), gap - 0.04), (gap + 0.04, random.uniform(0.88, 1.0))
        actors = [
            replace(_still(random), action="first", moment=first),
            replace(_still(random), action="second", moment=second),
        ]
    else:
        moment = random.uniform(0.35, 0.65)
        actor = _still(random)
        after = random.choice([colour for colour in COLOURS if colour != actor.colour])
        actors = [replace(actor, action="turning", colour_after=after, moment=(moment, 1.0))]
        if random.random() < 0.4:
            actors.append(_still(random))
    return _checked(kind, actors, ground)


def _checked(kind: str, actors: list[Actor], ground: tuple[int, int, int]) -> Scene | None:
    """None if actors overlap, or if (except for counting) an actor cannot be identified by its shape or colour alone."""
    colours = [colour for actor in actors for colour in (actor.colour, actor.colour_after) if colour]
    unique = len({actor.shape for actor in actors}) == len(actors) and len(set(colours)) == len(colours)
    return None if _overlap(actors) or not (unique or kind == "count") else Scene(kind, tuple(actors), ground)


def _still(random: Random) -> Actor:
    size = random.choice(list(SIZES))
    place = _place(random, SIZES[size])
    return Actor(random.choice(SHAPES), random.choice(list(COLOURS)), size, "still", place, place)


def _mover(random: Random, motion: str) -> Actor:
    actor = replace(_still(random), action=motion)
    if motion in ("growing", "shrinking"):
        place = _place(random, 28.0)
        return replace(actor, start=place, end=place)
    if motion == "still":
        return actor
    # The path is drawn before its direction, so that its position does not reveal the direction.
    margin = SIZES[actor.size] + 2
    length = random.uniform(50.0, SIDE - 2 * margin)
    low = random.uniform(margin, SIDE - margin - length)
    across = random.uniform(margin, SIDE - margin)
    ends = (low, low + length) if motion in ("right", "down") else (low + length, low)
    if motion in ("left", "right"):
        return replace(actor, start=(ends[0], across), end=(ends[1], across))
    return replace(actor, start=(across, ends[0]), end=(across, ends[1]))


def _place(random: Random, radius: float) -> tuple[float, float]:
    return random.uniform(radius + 2, SIDE - radius - 2), random.uniform(radius + 2, SIDE - radius - 2)


def _overlap(actors: list[Actor]) -> bool:
    boxes = [actor.box() for actor in actors]
    return any(
        left < box[2] + 3 and box[0] < right + 3 and top < box[3] + 3 and box[1] < bottom + 3
        for place, (left, top, right, bottom) in enumerate(boxes)
        for box in boxes[:place]
    )


def render_frame(scene: Scene, time: float) -> Image.Image:
    """The scene at a time from 0 to 1, drawn at twice its size for smooth edges."""
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), scene.ground)
    draw = ImageDraw.Draw(image)
    for actor in scene.actors:
        if actor.visible(time):
            (x, y), radius = actor.centre(time), actor.radius(time)
            _draw_shape(draw, actor.shape, 2 * x, 2 * y, 2 * radius, COLOURS[actor.colour_at(time)])
    return image.reduce(2)


def render_clip(scene: Scene) -> np.ndarray:
    """All frames, uint8 [NUM_FRAMES, SIDE, SIDE, 3]."""
    return np.stack([np.asarray(render_frame(scene, index / (NUM_FRAMES - 1))) for index in range(NUM_FRAMES)])


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        r *= 0.88  # for about the circle's area
        draw.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "triangle":
        draw.polygon(((x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)), fill=fill)
    elif shape == "cross":
        arm = 0.33 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    else:
        turns = [(math.pi * k / 5, r if k % 2 == 0 else 0.42 * r) for k in range(10)]
        draw.polygon([(x + d * math.sin(a), y - d * math.cos(a)) for a, d in turns], fill=fill)
