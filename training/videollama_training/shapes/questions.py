"""Questions about a scene, and their true answers.

A question has a topic (what must be understood) and a form (how it is asked). The wording of the question determines the wording
of the answer, so that an answer is right exactly if it equals the expected one, ignoring case and full stop. An answer with a
verdict (yes, no, a letter) first states the fact: a small model learns to conclude from its own words sooner than to compare
without them.
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
    """`number` different questions, with topics about equally frequent."""
    makers = _MAKERS[scene.kind]
    items: dict[str, Item] = {}
    while len(items) < number:
        for maker in random.sample(makers, len(makers)):
            item = maker(scene, random)
            if len(items) < number:
                items.setdefault(item.question, item)
    return list(items.values())


def ask_image(scene: Scene, random: Random, number: int) -> list[Item]:
    """Questions about an image of still objects."""
    items: dict[str, Item] = {}
    while len(items) < number:
        item = random.choice(_MAKERS["count"])(scene, random)
        items.setdefault(item.question.replace("video", "picture"), item)
    return [Item(item.topic, item.form, question, item.answer) for question, item in items.items()]


def ask_picture(scene: Scene, random: Random, number: int) -> list[Item]:
    """A caption of the objects from left to right, and questions about single objects: the first training stage."""
    actors = sorted(scene.actors, key=lambda actor: actor.start)
    caption = " and ".join(f"a {a.size} {a.colour} {a.shape} {place_name(a.start)}" for a in actors)
    items = {"caption": Item("description", "description", "What is where in the picture?", caption)}
    while len(items) < number:
        item = random.choice((ask_colour, ask_shape, ask_size, ask_where))(scene, random)
        items.setdefault(item.question, item)
    return list(items.values())


def ask_text(random: Random) -> Item:
    """A question that states its own fact, to train concluding a verdict from a fact without media."""
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
    sentence = f"{fact[0].upper()}{fact[1:]}."
    if random.random() < 0.7:
        choice, answer = put_options(random, f"{sentence} {question}", right, others(random, values, right), begin)
        return Item(kind, "choice", choice, answer)
    other = right if random.random() < 0.5 else others(random, values, right, 1)[0]
    yes_no = f"Is it {other}?" if begin == "it is" else f"Is it true that it {other}?"
    return Item(kind, "yes/no", f"{sentence} {yes_no}", conclude(fact, other == right))


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
