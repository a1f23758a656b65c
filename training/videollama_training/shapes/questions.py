"""Questions about a scene, and their true answers.

A question has a topic (what must be understood) and a form (how it is put). The wording of the question decides the wording
of the answer, so that an answer is right exactly when it is the expected one, case and full stop aside. Where there is a
verdict (yes, no, a letter), the answer says first what it saw and then what follows: a small model learns to read its own
words sooner than to compare what it never said.
"""

from random import Random

from videollama_training.shapes.questions_still import (
    ask_colour,
    ask_count,
    ask_shape,
    ask_size,
    ask_turning_shape,
    ask_where,
)
from videollama_training.shapes.questions_temporal import ask_appearance, ask_change, ask_motion, ask_order, ask_place
from videollama_training.shapes.wording import DOES, NUMBERS, Item, conclude, describe, others, put_options
from videollama_training.shapes.world import COLOURS, SHAPES, Scene, place_name


def ask(scene: Scene, random: Random, number: int) -> list[Item]:
    """`number` different questions, no topic far more often than another."""
    makers = _MAKERS[scene.kind]
    items: dict[str, Item] = {}
    while len(items) < number:
        for maker in random.sample(makers, len(makers)):
            item = maker(scene, random)
            if len(items) < number:
                items.setdefault(item.question, item)
    return list(items.values())


def ask_image(scene: Scene, random: Random, number: int) -> list[Item]:
    """Questions about a picture of still things."""
    items: dict[str, Item] = {}
    while len(items) < number:
        item = random.choice(_MAKERS["count"])(scene, random)
        items.setdefault(item.question.replace("video", "picture"), item)
    return [Item(item.topic, item.form, question, item.answer) for question, item in items.items()]


def ask_picture(scene: Scene, random: Random, number: int) -> list[Item]:
    """What is where, from left to right, and questions about single things: the first training stage."""
    things = sorted(scene.actors, key=lambda actor: actor.start)
    caption = " and ".join(f"a {a.size} {a.colour} {a.shape} {place_name(a.start)}" for a in things)
    items = {"caption": Item("description", "description", "What is where in the picture?", caption)}
    while len(items) < number:
        item = random.choice((ask_colour, ask_shape, ask_size, ask_where))(scene, random)
        items.setdefault(item.question, item)
    return list(items.values())


def ask_text(random: Random) -> Item:
    """A question that holds its own fact: how a verdict follows from what was seen, without a picture."""
    kind = random.choice(("colour", "shape", "number", "action"))
    if kind == "colour":
        values, begin, question = list(COLOURS), "it is", "What colour is it?"
    elif kind == "shape":
        values, begin, question = [f"a {shape}" for shape in SHAPES], "it is", "What shape is it?"
    elif kind == "number":
        values, begin, question = list(NUMBERS[1:]), "it is", "How many are there?"
    else:
        values, begin, question = list(DOES.values()), "it", "What does it do?"
    right = random.choice(values)
    fact = f"{begin} {right}"
    told = f"{fact[0].upper()}{fact[1:]}."
    if random.random() < 0.7:
        asked, answer = put_options(random, f"{told} {question}", right, others(random, values, right), begin)
        return Item(kind, "choice", asked, answer)
    other = right if random.random() < 0.5 else others(random, values, right, 1)[0]
    asked = f"Is it {other}?" if begin == "it is" else f"Is it true that it {other}?"
    return Item(kind, "yes/no", f"{told} {asked}", conclude(fact, other == right))


def _description(scene: Scene, random: Random) -> Item:
    question = random.choice(("Describe the video.", "Describe what you see in one sentence."))
    return Item("description", "description", question, describe(scene), temporal=_is_temporal(scene))


def _is_temporal(scene: Scene) -> bool:
    return scene.kind != "count" and scene.actors[0].action != "still"


_COMMON = [ask_colour, ask_shape, ask_size]
_MAKERS = {
    "motion": [*_COMMON, ask_motion, ask_motion, ask_motion, ask_place, _description],
    "appearance": [*_COMMON, ask_appearance, ask_appearance, ask_appearance, _description],
    "order": [*_COMMON, ask_order, ask_order, ask_order, _description],
    "change": [ask_turning_shape, ask_change, ask_change, ask_change, _description],
    "count": [*_COMMON, ask_count, ask_count, ask_count, _description],
}
