"""Wording of questions and answers: numbers, options, verdicts, and scene descriptions."""

from dataclasses import dataclass
from random import Random

from videollama_training.shapes.world import Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five")
LETTERS = "ABCD"
# The predicate of each action, used in sentences and as an option.
DOES = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "growing": "grows",
    "shrinking": "shrinks",
    "still": "stays still",
    "appearing": "appears",
    "disappearing": "disappears",
}


@dataclass(frozen=True)
class Item:
    """One question with its answer."""

    topic: str  # colour, shape, size, count, motion, place, stillness, appearance, order, change, description
    form: str  # open, yes/no, choice, description
    question: str
    answer: str
    temporal: bool = False  # needs the order of the frames; an unordered set of frames leaves two possible answers


def pick(random: Random, *pairs: tuple[str, str]) -> tuple[str, str]:
    """Choose one of several wordings of a question, each with its answer."""
    return random.choice(pairs)


def put_options(random: Random, question: str, right: str, wrong: list[str], begin: str = "it is") -> tuple[str, str]:
    """A question with options (A)-(D), and its answer: the option's text and letter."""
    options = random.sample([right, *wrong], len(wrong) + 1)
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    instruction = "Answer with the option's letter."
    return "\n".join([question, *lines, instruction]), f"{begin} {right}: ({LETTERS[options.index(right)]})"


def others(random: Random, values: "tuple[str, ...] | list[str]", right: str, number: int = 3) -> list[str]:
    """Choose wrong options."""
    return random.sample([value for value in values if value != right], number)


def conclude(fact: str, truth: bool) -> str:
    """A fact followed by the verdict."""
    return f"{fact}, so {'yes' if truth else 'no'}"


def there_are(number: int, noun: str) -> str:
    """A sentence that states a number of objects, one to five."""
    return f"there is one {noun}" if number == 1 else f"there are {NUMBERS[number]} {noun}s"


def describe(scene: Scene) -> str:
    """A sentence that describes the whole scene."""
    actors = scene.actors
    if scene.kind == "order":
        first, second = (f"a {actor.size} {actor.colour} {actor.shape}" for actor in actors)
        return f"{first} comes first, then {second}"
    if scene.kind == "count":
        if len(actors) == 1:
            return f"there is a {actors[0].size} {actors[0].colour} {actors[0].shape}"
        return f"there are {NUMBERS[len(actors)]} things"
    actor = actors[0]
    does = f"turns from {actor.colour} to {actor.colour_after}" if actor.action == "turning" else DOES[actor.action]
    size = "" if actor.action in ("growing", "shrinking") else f"{actor.size} "
    colour = "" if actor.action == "turning" else f"{actor.colour} "
    sentence = f"a {size}{colour}{actor.shape} {does}"
    if len(actors) == 2:
        other = actors[1]
        sentence += f" beside a {other.size} {other.colour} {other.shape}"
    return sentence
