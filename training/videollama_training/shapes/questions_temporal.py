"""Questions that need the order of the frames: motion, appearance, order and change."""

from random import Random

from videollama_training.shapes.questions_still import name_of
from videollama_training.shapes.wording import DOES, Item, conclude, others, pick, put_options
from videollama_training.shapes.world import COLOURS, MOTIONS, REVERSED, Scene, place_name


def ask_motion(scene: Scene, random: Random) -> Item:
    """Ask what a moving, growing or shrinking object does; occasionally, whether it stays still."""
    actor = scene.actors[0]
    name, motion = name_of(actor, random), actor.action
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
    if form < 0.75:  # about the motion or its reverse, which an unordered set of frames does not distinguish
        claim = motion if random.random() < 0.5 else REVERSED[motion]
        verb = {"grows": "grow", "shrinks": "shrink"}.get(DOES[claim], DOES[claim].replace("moves", "move"))
        return Item(
            "motion", "yes/no", f"Does {name} {verb}?", conclude(f"it {DOES[motion]}", claim == motion), temporal=True
        )
    wrong = [REVERSED[motion], *others(random, [m for m in MOTIONS if m != REVERSED[motion]], motion, 2)]
    question, answer = put_options(
        random, f"What does {name} do?", DOES[motion], [DOES[other] for other in wrong], "it"
    )
    return Item("motion", "choice", question, answer, temporal=True)


def ask_place(scene: Scene, random: Random) -> Item:
    """Ask where a moving object is at the beginning or at the end; the unordered frames show both positions."""
    actor = scene.actors[0]
    if actor.action not in ("left", "right", "up", "down"):
        return ask_motion(scene, random)
    last = random.random() < 0.5
    question = f"Where is {name_of(actor, random)} at {'the end' if last else 'first'}?"
    return Item("place", "open", question, f"it is {place_name(actor.centre(0.94 if last else 0.06))}", temporal=True)


def _stillness(scene: Scene, random: Random) -> Item:
    """Ask whether anything happens; the unordered frames suffice."""
    actor = random.choice(scene.actors)
    name, still = name_of(actor, random), actor.action == "still"
    if still and random.random() < 0.4:
        return Item("stillness", "open", f"What does {name} do?", "it stays still")
    answer = conclude("it stays still" if still else "it changes", still)
    return Item("stillness", "yes/no", f"Does {name} stay still?", answer)


def ask_appearance(scene: Scene, random: Random) -> Item:
    """Ask whether an object appears or disappears."""
    actor = scene.actors[0]
    name, does = name_of(actor, random), DOES[actor.action]
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
        claim = random.choice(("appearing", "disappearing"))
        verb = DOES[claim].removesuffix("s")
        return Item(
            "appearance", "yes/no", f"Does {name} {verb}?", conclude(f"it {does}", claim == actor.action), temporal=True
        )
    wrong = [REVERSED[actor.action], *random.sample([m for m in MOTIONS], 2)]
    question, answer = put_options(random, f"What does {name} do?", does, [DOES[other] for other in wrong], "it")
    return Item("appearance", "choice", question, answer, temporal=True)


def ask_order(scene: Scene, random: Random) -> Item:
    """Ask which of two objects comes first."""
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
        pair = (second, first) if flip else (first, second)
        word = random.choice(("before", "after"))
        question = f"Does {pair[0]} come {word} {pair[1]}?"
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


def ask_change(scene: Scene, random: Random) -> Item:
    """Ask from which colour to which an object changes."""
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
