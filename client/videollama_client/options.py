"""What a caller may say with a question, once for every method of the sync and the async client."""

from collections.abc import Sequence
from typing import TypedDict

from videollama_client.media import Source, Video

Question = str | Sequence[dict[str, str]]  # one user turn, or {role, content} messages; media belongs to the first


class QuestionOptions(TypedDict, total=False):
    """Keywords of `ask` and `stream`. An option left out, or None, means the checkpoint's own default.

    Attributes:
        video: path, folder of frames, bytes, uint8 [T, H, W, 3], or a list of frames or image paths.
        image: path, bytes or uint8 [H, W, 3].
        audio: path or bytes of an audio file; 30 s of it are used, from `start` on.
        video_url, image_url, audio_url: where the server fetches it: https://..., or file://... on its own disk; only what its
            operator allows.
        with_audio: use the video's audio track as well.
        start: seconds; the first moment of the video or audio to use.
        end: seconds; the last moment to use.
        num_frames: how many frames of a video, gif or folder are looked at: the checkpoint's number, which is the default, to 32.
        sampling: "exact", or "keyframes": the key frame of a video file that is nearest to each wanted frame. An approximation, seconds
            apart where key frames are, which costs a small part of the decoding; `Answer.frames` tells what was looked at.
        max_new_tokens: at most this many tokens.
        temperature: 0 is greedy.
        top_k: only the best K tokens; 0 is off.
        top_p: nucleus, in (0, 1].
        repetition_penalty: 1 is off; counts generated tokens only.
        seed: the same seed gives the same text.
        vcd_alpha: weight of visual contrastive decoding; above 0 turns it on, 1 is the paper's.
        vcd_beta: its plausibility cutoff: tokens at least this many times as likely as the best; 0.1.
        vcd_noise_step: diffusion steps of its noise, 0 to 999; 500.
        stop: the text ends before the first of these strings.
        timeout: seconds until DeadlineExceeded, above 0; None waits as long as the server works.
        request_id: names the request in logs and for `cancel`: printable characters.
        traceparent: the trace that the request is part of, in W3C's form; goes with the call as metadata.
        measured: the caller sends the request's metrics to OpenTelemetry itself, so that the server sends none of it.
        media_digest: what names the media for balancers, in place of their SHA-256, where it is known already.
    """

    video: Video | None
    image: Source | None
    audio: Source | None
    video_url: str | None
    image_url: str | None
    audio_url: str | None
    with_audio: bool
    start: float | None
    end: float | None
    num_frames: int | None
    sampling: str | None
    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None
    vcd_alpha: float | None
    vcd_beta: float | None
    vcd_noise_step: int | None
    stop: str | Sequence[str]
    timeout: float | None
    request_id: str | None
    traceparent: str | None
    measured: bool
    media_digest: str | None
