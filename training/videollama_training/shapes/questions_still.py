"""Questions that a single frame answers: appearance, number and position of objects."""

from random import Random

from videollama_training.shapes.wording import NUMBERS, Item, conclude, others, pick, put_options, there_are
from videollama_training.shapes.world import COLOURS, SHAPES, SIZES, Actor, Scene, place_name


def _unique(scene: Scene, random: Random) -> Actor | None:
    """An actor that shares neither its shape nor its colour with another; None if there is none."""
    unique = [
        actor
        for actor in scene.actors
        if sum(other.shape == actor.shape for other in scene.actors) == 1
        and sum(other.colour == actor.colour for other in scene.actors) == 1
    ]
    return random.choice(unique) if unique else None


def name_of(actor: Actor, random: Random) -> str:
    """A random one of three ways to name an object."""
    return random.choice((f"the {actor.colour} {actor.shape}", f"the {actor.shape}", f"the {actor.colour} thing"))


def ask_where(scene: Scene, random: Random) -> Item:
    """Ask for the position of a still object."""
    actor = random.choice(scene.actors)
    return Item("place", "open", f"Where is {name_of(actor, random)}?", f"it is {place_name(actor.start)}")


def ask_colour(scene: Scene, random: Random) -> Item:
    """Ask for the colour of an object given its shape; if no object is unique, ask for a number."""
    actor = _unique(scene, random)
    if actor is None:
        return ask_count(scene, random)
    shape, colour = actor.shape, actor.colour
    wordings = (
        (f"What colour is the {shape}?", f"it is {colour}"),
        (f"Tell me the colour of the {shape}.", f"the {shape} is {colour}"),
        (f"Which colour does the {shape} have?", f"it is {colour}"),
    )
    return _ask_property(random, "colour", colour, list(COLOURS), wordings, "it is {}", f"Is the {shape} {{}}?")


def ask_shape(scene: Scene, random: Random) -> Item:
    """Ask for the shape of an object given its colour; if no object is unique, ask for a number."""
    actor = _unique(scene, random)
    if actor is None:
        return ask_count(scene, random)
    shape, colour = actor.shape, actor.colour
    wordings = (
        (f"What shape is {colour}?", f"it is a {shape}"),
        (f"What is the {colour} thing?", f"the {colour} thing is a {shape}"),
        (f"Which shape does the {colour} thing have?", f"it is a {shape}"),
    )
    return _ask_property(random, "shape", shape, list(SHAPES), wordings, "it is a {}", f"Is the {colour} thing a {{}}?")


def _ask_property(
    random: Random,
    topic: str,
    right: str,
    values: list[str],
    wordings: tuple[tuple[str, str], ...],
    fact: str,
    verdict: str,
) -> Item:
    """A question about one property of an object, in a random form."""
    form = random.random()
    if form < 0.5:
        return Item(topic, "open", *pick(random, *wordings))
    if form < 0.75:
        claim = right if random.random() < 0.5 else others(random, values, right, 1)[0]
        return Item(topic, "yes/no", verdict.format(claim), conclude(fact.format(right), claim == right))
    article = fact.removeprefix("it is ").removesuffix("{}")
    wrong = [article + value for value in others(random, values, right)]
    return Item(topic, "choice", *put_options(random, wordings[0][0], article + right, wrong))


def ask_size(scene: Scene, random: Random) -> Item:
    """Ask whether an object is small or large; for an object whose size changes, ask for its colour."""
    actor = _unique(scene, random)
    if actor is None or actor.action in ("growing", "shrinking"):
        return ask_colour(scene, random)
    name = random.choice((f"{actor.colour} {actor.shape}", actor.shape))
    if random.random() < 0.6:
        question, answer = pick(
            random,
            (f"Is the {name} small or large?", f"it is {actor.size}"),
            (f"How big is the {name}?", f"it is {actor.size}"),
        )
        return Item("size", "open", question, answer)
    claim = random.choice(list(SIZES))
    return Item("size", "yes/no", f"Is the {name} {claim}?", conclude(f"it is {actor.size}", claim == actor.size))


def ask_count(scene: Scene, random: Random) -> Item:
    """Ask for the number of objects, in total or of one shape or colour."""
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
        if random.random() < 0.75:  # mostly about a shape or colour that is present
            word = random.choice([actor.shape if by_shape else actor.colour for actor in scene.actors])
        number = sum(word in (actor.shape, actor.colour) for actor in scene.actors)
        plural = {"cross": "crosses"}.get(word, f"{word}s") if by_shape else f"{word} things"
        noun = word if by_shape else f"{word} thing"
        answer = f"there is one {noun}" if number == 1 else f"there are {NUMBERS[number]} {plural}"
        return Item("count", "open", f"How many {plural} are there?", answer)
    if form < 0.9:
        wrong = others(random, [NUMBERS[n] for n in range(1, 6)], NUMBERS[total])
        return Item("count", "choice", *put_options(random, "How many things are there?", NUMBERS[total], wrong))
    claim = total if random.random() < 0.5 else random.choice([n for n in range(1, 6) if n != total])
    plural = "thing" if claim == 1 else "things"
    answer = conclude(there_are(total, "thing"), claim == total)
    return Item("count", "yes/no", f"Does the video show {NUMBERS[claim]} {plural}?", answer)


def ask_turning_shape(scene: Scene, random: Random) -> Item:
    """Ask which shape changes its colour."""
    shape = scene.actors[0].shape
    if random.random() < 0.5:
        return Item("shape", "open", "Which shape changes its colour?", f"it is the {shape}")
    claim = shape if random.random() < 0.5 else random.choice(others(random, SHAPES, shape))
    return Item("shape", "yes/no", f"Does a {claim} change its colour?", conclude(f"the {shape} does", claim == shape))
