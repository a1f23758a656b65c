"""Questions about a scene, and their true answers.

A question has a topic (what must be understood) and a form (how it is put). The wording of the question decides the wording
of the answer, so that an answer is right exactly when it is the expected one, case and full stop aside. Where there is a
verdict (yes, no, a letter), the answer says first what it saw and then what follows: a small model learns to read its own
words sooner than to compare what it never said.
"""

from random import Random

from videollama_training.shapes.wording import (
    DOES,
    NUMBERS,
    Item,
    conclude,
    describe,
    others,
    pick,
    put_options,
    there_are,
)
from videollama_training.shapes.world import COLOURS, MOTIONS, REVERSED, SHAPES, SIZES, Actor, Scene, place_name


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
        item = random.choice((_colour, _shape, _size, _where))(scene, random)
        items.setdefault(item.question, item)
    return list(items.values())


def _where(scene: Scene, random: Random) -> Item:
    actor = random.choice(scene.actors)
    return Item("place", "open", f"Where is {_name(actor, random)}?", f"it is {place_name(actor.start)}")


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


def _unique(scene: Scene, random: Random) -> Actor | None:
    """An actor whose shape and whose colour no other has."""
    found = [
        actor
        for actor in scene.actors
        if sum(other.shape == actor.shape for other in scene.actors) == 1
        and sum(other.colour == actor.colour for other in scene.actors) == 1
    ]
    return random.choice(found) if found else None


def _colour(scene: Scene, random: Random) -> Item:
    actor = _unique(scene, random)
    if actor is None:
        return _count(scene, random)
    shape, colour = actor.shape, actor.colour
    wordings = (
        (f"What colour is the {shape}?", f"it is {colour}"),
        (f"Tell me the colour of the {shape}.", f"the {shape} is {colour}"),
        (f"Which colour does the {shape} have?", f"it is {colour}"),
    )
    return _look(random, "colour", colour, list(COLOURS), wordings, "it is {}", f"Is the {shape} {{}}?")


def _shape(scene: Scene, random: Random) -> Item:
    actor = _unique(scene, random)
    if actor is None:
        return _count(scene, random)
    shape, colour = actor.shape, actor.colour
    wordings = (
        (f"What shape is {colour}?", f"it is a {shape}"),
        (f"What is the {colour} thing?", f"the {colour} thing is a {shape}"),
        (f"Which shape does the {colour} thing have?", f"it is a {shape}"),
    )
    return _look(random, "shape", shape, list(SHAPES), wordings, "it is a {}", f"Is the {colour} thing a {{}}?")


def _look(
    random: Random,
    topic: str,
    right: str,
    values: list[str],
    wordings: tuple[tuple[str, str], ...],
    fact: str,
    verdict: str,
) -> Item:
    """A question about how one thing looks, in any form."""
    form = random.random()
    if form < 0.5:
        return Item(topic, "open", *pick(random, *wordings))
    if form < 0.75:
        asked = right if random.random() < 0.5 else others(random, values, right, 1)[0]
        return Item(topic, "yes/no", verdict.format(asked), conclude(fact.format(right), asked == right))
    article = fact.removeprefix("it is ").removesuffix("{}")
    wrong = [article + value for value in others(random, values, right)]
    return Item(topic, "choice", *put_options(random, wordings[0][0], article + right, wrong))


def _size(scene: Scene, random: Random) -> Item:
    actor = _unique(scene, random)
    if actor is None or actor.action in ("growing", "shrinking"):
        return _colour(scene, random)
    name = random.choice((f"{actor.colour} {actor.shape}", actor.shape))
    if random.random() < 0.6:
        question, answer = pick(
            random,
            (f"Is the {name} small or large?", f"it is {actor.size}"),
            (f"How big is the {name}?", f"it is {actor.size}"),
        )
        return Item("size", "open", question, answer)
    asked = random.choice(list(SIZES))
    return Item("size", "yes/no", f"Is the {name} {asked}?", conclude(f"it is {actor.size}", asked == actor.size))


def _count(scene: Scene, random: Random) -> Item:
    total = len(scene.actors)
    form = random.random()
    if form < 0.45:
        question, answer = pick(
            random,
            ("How many things are there?", there_are(total, "thing")),
            ("Count the things in the video.", there_are(total, "thing")),
            ("How many shapes does the video show?", f"it shows {NUMBERS[total]}"),
        )
        return Item("count", "open", question, answer)
    if form < 0.75:
        by_shape = random.random() < 0.5
        word = random.choice(SHAPES if by_shape else list(COLOURS))
        if random.random() < 0.75:  # mostly about something that is there
            word = random.choice([actor.shape if by_shape else actor.colour for actor in scene.actors])
        number = sum(word in (actor.shape, actor.colour) for actor in scene.actors)
        plural = {"cross": "crosses"}.get(word, f"{word}s") if by_shape else f"{word} things"
        noun = word if by_shape else f"{word} thing"
        answer = f"there is one {noun}" if number == 1 else f"there are {NUMBERS[number]} {plural}"
        return Item("count", "open", f"How many {plural} are there?", answer)
    if form < 0.9:
        wrong = others(random, [NUMBERS[n] for n in range(1, 6)], NUMBERS[total])
        return Item("count", "choice", *put_options(random, "How many things are there?", NUMBERS[total], wrong))
    asked = total if random.random() < 0.5 else random.choice([n for n in range(1, 6) if n != total])
    plural = "thing" if asked == 1 else "things"
    answer = conclude(there_are(total, "thing"), asked == total)
    return Item("count", "yes/no", f"Does the video show {NUMBERS[asked]} {plural}?", answer)


def _name(actor: Actor, random: Random) -> str:
    return random.choice((f"the {actor.colour} {actor.shape}", f"the {actor.shape}", f"the {actor.colour} thing"))


def _motion(scene: Scene, random: Random) -> Item:
    actor = scene.actors[0]
    name, motion = _name(actor, random), actor.action
    if motion == "still" or random.random() < 0.15:
        return _stillness(scene, random)
    form = random.random()
    if form < 0.5:
        question, answer = pick(
            random,
            (f"What does {name} do?", f"it {DOES[motion]}"),
            ("What happens in the video?", f"the {actor.colour} {actor.shape} {DOES[motion]}"),
            (f"How does {name} change?", f"it {DOES[motion]}"),
        )
        return Item("motion", "open", question, answer, temporal=True)
    if form < 0.75:  # asked about itself or its reverse: an unordered set of frames does not tell which
        asked = motion if random.random() < 0.5 else REVERSED[motion]
        verb = {"grows": "grow", "shrinks": "shrink"}.get(DOES[asked], DOES[asked].replace("moves", "move"))
        return Item(
            "motion", "yes/no", f"Does {name} {verb}?", conclude(f"it {DOES[motion]}", asked == motion), temporal=True
        )
    wrong = [REVERSED[motion], *others(random, [m for m in MOTIONS if m != REVERSED[motion]], motion, 2)]
    question, answer = put_options(
        random, f"What does {name} do?", DOES[motion], [DOES[other] for other in wrong], "it"
    )
    return Item("motion", "choice", question, answer, temporal=True)


def _place(scene: Scene, random: Random) -> Item:
    """Where a moving thing is at the beginning or at the end: the unordered frames show both places."""
    actor = scene.actors[0]
    if actor.action not in ("left", "right", "up", "down"):
        return _motion(scene, random)
    last = random.random() < 0.5
    question = f"Where is {_name(actor, random)} at {'the end' if last else 'first'}?"
    return Item("place", "open", question, f"it is {place_name(actor.centre(0.94 if last else 0.06))}", temporal=True)


def _stillness(scene: Scene, random: Random) -> Item:
    """Whether something happens at all: the unordered frames tell."""
    actor = random.choice(scene.actors)
    name, still = _name(actor, random), actor.action == "still"
    if still and random.random() < 0.4:
        return Item("stillness", "open", f"What does {name} do?", "it stays still")
    answer = conclude("it stays still" if still else "it changes", still)
    return Item("stillness", "yes/no", f"Does {name} stay still?", answer)


def _appearance(scene: Scene, random: Random) -> Item:
    actor = scene.actors[0]
    name, does = _name(actor, random), DOES[actor.action]
    form = random.random()
    if form < 0.5:
        question, answer = pick(
            random,
            (f"Does {name} appear or disappear?", f"it {does}"),
            ("What happens in the video?", f"the {actor.colour} {actor.shape} {does}"),
            (f"What does {name} do?", f"it {does}"),
        )
        return Item("appearance", "open", question, answer, temporal=True)
    if form < 0.75:
        asked = random.choice(("appearing", "disappearing"))
        verb = DOES[asked].removesuffix("s")
        return Item(
            "appearance", "yes/no", f"Does {name} {verb}?", conclude(f"it {does}", asked == actor.action), temporal=True
        )
    wrong = [REVERSED[actor.action], *random.sample([m for m in MOTIONS], 2)]
    question, answer = put_options(random, f"What does {name} do?", does, [DOES[other] for other in wrong], "it")
    return Item("appearance", "choice", question, answer, temporal=True)


def _order(scene: Scene, random: Random) -> Item:
    first, second = (f"the {actor.colour} {actor.shape}" for actor in scene.actors)
    form = random.random()
    if form < 0.5:
        question, answer = pick(
            random,
            ("What is shown first?", f"it is {first}"),
            ("What comes last?", f"it is {second}"),
            ("Which thing comes first?", f"it is {first}"),
            ("What happens in the video?", f"{first} comes first, then {second}"),
        )
        return Item("order", "open", question, answer, temporal=True)
    if form < 0.8:
        flip = random.random() < 0.5
        asked = (second, first) if flip else (first, second)
        word = random.choice(("before", "after"))
        question = f"Does {asked[0]} come {word} {asked[1]}?"
        return Item(
            "order", "yes/no", question, conclude(f"{first} comes first", (word == "before") != flip), temporal=True
        )
    absent = [
        f"the {random.choice(others(random, list(COLOURS), actor.colour))} {actor.shape}" for actor in scene.actors
    ]
    last = random.random() < 0.5
    right, other = (second, first) if last else (first, second)
    question, answer = put_options(random, f"What comes {'last' if last else 'first'}?", right, [other, *absent])
    return Item("order", "choice", question, answer, temporal=True)


def _change(scene: Scene, random: Random) -> Item:
    actor = scene.actors[0]
    before, after = actor.colour, actor.colour_after
    name = f"the {actor.shape}"
    form = random.random()
    if form < 0.55:
        question, answer = pick(
            random,
            (f"Which colour does {name} have at first?", f"it is {before}"),
            (f"Which colour does {name} have at the end?", f"it is {after}"),
            (f"What does {name} do?", f"it turns from {before} to {after}"),
            ("What happens in the video?", f"{name} turns from {before} to {after}"),
        )
        return Item("change", "open", question, answer, temporal=True)
    flip = random.random() < 0.5
    old, new = (after, before) if flip else (before, after)
    if form < 0.8:
        return Item(
            "change",
            "yes/no",
            f"Does {name} turn from {old} to {new}?",
            conclude(f"it turns from {before} to {after}", not flip),
            temporal=True,
        )
    last = random.random() < 0.5
    right, other = (after, before) if last else (before, after)
    wrong = [other, *random.sample([colour for colour in COLOURS if colour not in (before, after)], 2)]
    question = f"Which colour does {name} have {'at the end' if last else 'at first'}?"
    return Item("change", "choice", *put_options(random, question, right, wrong), temporal=True)


def _turning_shape(scene: Scene, random: Random) -> Item:
    shape = scene.actors[0].shape
    if random.random() < 0.5:
        return Item("shape", "open", "Which shape changes its colour?", f"it is the {shape}")
    asked = shape if random.random() < 0.5 else random.choice(others(random, SHAPES, shape))
    return Item("shape", "yes/no", f"Does a {asked} change its colour?", conclude(f"the {shape} does", asked == shape))


def _description(scene: Scene, random: Random) -> Item:
    question = random.choice(("Describe the video.", "Describe what you see in one sentence."))
    return Item("description", "description", question, describe(scene), temporal=_is_temporal(scene))


def _is_temporal(scene: Scene) -> bool:
    return scene.kind != "count" and scene.actors[0].action != "still"


_COMMON = [_colour, _shape, _size]
_MAKERS = {
    "motion": [*_COMMON, _motion, _motion, _motion, _place, _description],
    "appearance": [*_COMMON, _appearance, _appearance, _appearance, _description],
    "order": [*_COMMON, _order, _order, _order, _description],
    "change": [_turning_shape, _change, _change, _change, _description],
    "count": [*_COMMON, _count, _count, _count, _description],
}
