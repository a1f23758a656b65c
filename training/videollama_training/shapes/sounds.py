"""The world's sounds: beeps to count, rising and falling tones, silence, and clips whose audio and video both matter."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import av
import numpy as np

from videollama_training.shapes.wording import NUMBERS, Item
from videollama_training.shapes.world import FRAMES_PER_SECOND, NUM_FRAMES, Scene, draw_scene, render_clip

RATE = 16000  # samples per second
SOUND_SECONDS = 3.0
CLIP_SECONDS = NUM_FRAMES / FRAMES_PER_SECOND
BEEP_SECONDS = 0.12
PITCHES = {"low": 300.0, "high": 1200.0}  # hertz
GLIDES = {"rising": (300.0, 1200.0), "falling": (1200.0, 300.0)}
KINDS = ("beeps", "glide", "tone", "silence")
MIXED = "mixed"  # low and high beeps in one sound, so that numbers are learned independently of pitches


@dataclass(frozen=True)
class Sound:
    kind: str  # of KINDS
    pitch: str = ""  # of beeps and tones: one of PITCHES, or MIXED
    beeps: tuple[float, ...] = ()  # start times in seconds
    glide: str = ""  # of GLIDES
    pitches: tuple[str, ...] = ()  # pitch of each beep, if mixed

    def timed_beeps(self) -> list[tuple[float, str]]:
        """Start time in seconds and pitch of each beep."""
        return list(zip(self.beeps, self.pitches or (self.pitch,) * len(self.beeps), strict=True))


def is_held_out_sound(sound: Sound) -> bool:
    """Whether this combination of number and pitch is held out; each number and each pitch is in training."""
    return sound.pitch in PITCHES and bool(sound.beeps) and (len(sound.beeps) + (sound.pitch == "high")) % 4 == 0


def draw_sound(random: Random, held_out: bool) -> Sound:
    """A random sound: only held-out combinations with `held_out`, or else none of them."""
    while True:
        kind = "beeps" if held_out else random.choice((*KINDS, MIXED))
        sound = Sound(kind)
        if kind == MIXED:
            sound = draw_mixed_beeps(random)
        elif kind == "beeps":
            number = random.randint(1, 5)
            sound = Sound(kind, random.choice(list(PITCHES)), tuple(_moments(random, number, 0.1, SOUND_SECONDS - 0.3)))
        elif kind == "tone":
            sound = Sound(kind, random.choice(list(PITCHES)))
        elif kind == "glide":
            sound = Sound(kind, glide=random.choice(list(GLIDES)))
        if is_held_out_sound(sound) == held_out:
            return sound


def draw_mixed_beeps(random: Random) -> Sound:
    """Two to five beeps, some low and some high."""
    number = random.randint(2, 5)
    pitches: list[str] = []
    while len(set(pitches)) < 2:
        pitches = random.choices(list(PITCHES), k=number)
    return Sound("beeps", MIXED, tuple(_moments(random, number, 0.1, SOUND_SECONDS - 0.3)), pitches=tuple(pitches))


def _moments(random: Random, number: int, low: float, high: float) -> list[float]:
    """Start times of beeps, far enough apart to be counted."""
    while True:
        starts = sorted(random.uniform(low, high) for _ in range(number))
        if all(right - left > 2 * BEEP_SECONDS for left, right in pairwise(starts)):
            return starts


def render_sound(sound: Sound, seconds: float = SOUND_SECONDS) -> np.ndarray:
    """float32 [seconds * RATE], from -1 to 1."""
    time = np.arange(round(seconds * RATE)) / RATE
    if sound.kind == "silence":
        return np.zeros(len(time), np.float32)
    if sound.kind == "glide":
        low, high = GLIDES[sound.glide]
        frequency = low * (high / low) ** (time / seconds)  # exponential, so that the pitch changes evenly
    else:
        frequency = np.full(len(time), PITCHES.get(sound.pitch, 0.0))
        for start, pitch in sound.timed_beeps():
            frequency[_during(time, start)] = PITCHES[pitch]
    samples = 0.5 * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)
    if sound.kind == "beeps":
        samples *= _envelope(time, sound.beeps)
    return samples.astype(np.float32)


def _envelope(time: np.ndarray, beeps: tuple[float, ...]) -> np.ndarray:
    envelope = np.zeros(len(time))
    for start in beeps:
        inside = _during(time, start)
        envelope[inside] = np.sin(np.pi * (time[inside] - start) / BEEP_SECONDS)  # smooth, to avoid clicks
    return envelope


def _during(time: np.ndarray, start: float) -> np.ndarray:
    """Mask of the samples of a beep that starts at `start`."""
    return (time >= start) & (time < start + BEEP_SECONDS)


def ask_sound(sound: Sound, random: Random) -> list[Item]:
    """All questions about this sound, each in one wording."""
    silent = Item("silence", "open", "Is there any sound?", "no, it is silent" if sound.kind == "silence" else "yes")
    if sound.kind == "beeps":
        number = NUMBERS[len(sound.beeps)]
        noun = "beep" if len(sound.beeps) == 1 else "beeps"
        count = Item("beeps", "open", random.choice(("How many beeps are there?", "Count the beeps.")), number)
        if sound.pitch == MIXED:  # if their pitch were asked, a model would take held-out combinations for mixed ones
            return [count, silent]
        return [
            count,
            Item("pitch", "open", "Are the beeps low or high?", sound.pitch),
            Item("description", "description", "Describe the sound.", f"{number} {sound.pitch} {noun}"),
            silent,
        ]
    if sound.kind == "glide":
        return [
            Item("glide", "open", "Does the pitch rise or fall?", f"it is {sound.glide}", temporal=True),
            Item("description", "description", "Describe the sound.", f"a {sound.glide} tone", temporal=True),
            silent,
        ]
    if sound.kind == "tone":
        return [
            Item("pitch", "open", "Is the tone low or high?", sound.pitch),
            Item("description", "description", "Describe the sound.", f"a steady {sound.pitch} tone"),
            silent,
        ]
    return [silent, Item("description", "description", "Describe the sound.", "silence")]


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Write samples float32 [n] as 16-bit mono FLAC."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@dataclass(frozen=True)
class SoundingScene:
    """A clip of two objects shown one after the other, with beeps while each is visible."""

    scene: Scene
    beeps: tuple[tuple[float, ...], tuple[float, ...]]  # start times in seconds, during the first and the second object


def draw_sounding_scene(random: Random, held_out: bool) -> SoundingScene:
    """A random clip of two objects with zero to two beeps during each. Args: held_out: as in `draw_scene`."""
    scene = draw_scene(random, "order", held_out)
    beeps = []
    for actor in scene.actors:
        start, end = (moment * CLIP_SECONDS for moment in actor.moment)
        number = random.randint(0, 2)
        beeps.append(tuple(_moments(random, number, start, end - BEEP_SECONDS)))
    return SoundingScene(scene, (beeps[0], beeps[1]))


def ask_sounding(sounding: SoundingScene) -> list[Item]:
    """Questions that need both audio and video, and one for each alone."""
    first, second = (f"the {actor.colour} {actor.shape}" for actor in sounding.scene.actors)
    counts = [len(beeps) for beeps in sounding.beeps]
    items = [
        Item("sound and picture", "open", f"How many beeps sound while {name} is there?", NUMBERS[count], temporal=True)
        for name, count in ((first, counts[0]), (second, counts[1]))
    ]
    items.append(Item("beeps", "open", "How many beeps are there?", NUMBERS[sum(counts)]))
    items.append(Item("order", "open", "What is shown first?", first, temporal=True))
    if counts[0] != counts[1]:
        more = first if counts[0] > counts[1] else second
        items.append(Item("sound and picture", "open", "Which thing has more beeps?", more, temporal=True))
    return items


def write_sounding_clip(path: Path, sounding: SoundingScene) -> None:
    """Write the clip as H.264 and AAC in mp4."""
    sound = Sound("beeps", "high", tuple(moment for beeps in sounding.beeps for moment in beeps))
    samples = render_sound(sound, CLIP_SECONDS)
    with av.open(str(path), "w") as container:
        frames = render_clip(sounding.scene)
        video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "18", "threads": "1"})
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, len(samples), 1024):
            piece = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            piece.sample_rate, piece.pts = RATE, start
            container.mux(audio.encode(piece))
        container.mux(audio.encode())
