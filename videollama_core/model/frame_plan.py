"""What the encoder must compute for a sequence of frames: each distinct frame, and each distinct pair in time, once.

The connector's Conv3d has kernel 2 and stride 2 in time: an output step depends on two neighbouring frames, which no other
step uses. An image is one frame and at most three steps (first, middle, last); a short video or black padding repeats
frames. The media tokens are exactly those of the whole sequence.
"""

from dataclasses import dataclass

import numpy as np

from videollama_core.model.config import ModelConfig


@dataclass(frozen=True)
class EncodingPlan:
    """The encoder's inputs without repetitions, and how to assemble its output."""

    distinct: np.ndarray  # uint8 [U, S, S, 3]; the frames themselves if none repeats
    frame_index: np.ndarray  # int64 [T'], rows of `distinct` to pass to the connector
    step_index: np.ndarray  # int64 [steps], the connector's output steps that form the result


def plan_encoding(frames: np.ndarray, config: ModelConfig) -> EncodingPlan:
    """Args: frames uint8 [T, S, S, 3]; T = 1 is an image, equivalent to num_frames equal frames."""
    rows: dict[bytes, int] = {}
    ids = [rows.setdefault(frame.tobytes(), len(rows)) for frame in frames]
    first = [ids.index(row) for row in range(len(rows))]
    if len(ids) == 1:
        ids = ids * config.num_frames
    frame_index, step_index = plan_time_steps(ids, config.connector_padding)
    distinct = frames if len(first) == len(frames) else frames[first]
    return EncodingPlan(distinct, frame_index, step_index)


def plan_time_steps(frame_ids: list[int], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """The shortest sequence of frames whose time steps include every step of the whole sequence.

    Args:
        frame_ids: row of each of the T frames among the distinct ones.
        padding: of the connector in time: 1 (stc_connector) or 0 (stc_connector_v35).
    Returns: frame_index and step_index of an EncodingPlan.
    """
    padded = [None] * padding + [*frame_ids] + [None] * padding
    pairs = [(padded[i], padded[i + 1]) for i in range(0, len(padded) - 1, 2)]
    edges = 1 if padding else 0  # the first step sees a zero frame; so does the last one when T is even
    last = 1 if padding and pairs[-1][1] is None and len(pairs) > 1 else 0
    middle = pairs[edges : len(pairs) - last]
    distinct = list(dict.fromkeys(middle))
    chosen = [pairs[0]] * edges + distinct + ([pairs[-1]] if last else [])
    frame_index = [row for pair in chosen for row in pair if row is not None]
    steps = [0] * edges + [edges + distinct.index(pair) for pair in middle] + [len(chosen) - 1] * last
    return np.array(frame_index, np.int64), np.array(steps, np.int64)
