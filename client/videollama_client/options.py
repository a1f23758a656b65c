"""The options of a question, defined once for every method of the synchronous and the asyncio client."""

from collections.abc import Sequence
from typing import TypedDict

from videollama_client.media import Source, Video

Question = str | Sequence[dict[str, str]]  # one user turn, or {role, content} messages; media belongs to the first


class QuestionOptions(TypedDict, total=False):
    """Keyword arguments of `ask` and `stream`. An option that is left out, or None, takes the checkpoint's own default.

    Attributes:
        video: path, folder of frames, bytes, uint8 [T, H, W, 3], or a list of frames or image paths.
        image: path, bytes or uint8 [H, W, 3].
        audio: path or bytes of an audio file; 30 s of it are used, from `start` on.
        video_url, image_url, audio_url: a URL that the server fetches: https://..., or file://... on its own disk; only what its
            operator allows.
        with_audio: use the video's audio track as well.
        start: seconds; where to begin in the video or audio.
        end: seconds; where to stop.
        num_frames: how many frames to sample from a video, gif or folder: from the checkpoint's number, the default, to 32.
        sampling: "exact", or "keyframes": the keyframe of a video file that is nearest to each sampled frame. An approximation,
            as far off as keyframes lie apart (seconds), for a fraction of the decoding; `Answer.frames` lists the frames used.
        max_new_tokens: generate at most this many tokens.
        temperature: sampling temperature; 0 decodes greedily.
        top_k: sample among the K most likely tokens; 0 turns it off.
        top_p: nucleus sampling, in (0, 1].
        repetition_penalty: 1 turns it off; it applies to generated tokens only.
        seed: of sampling; the same seed gives the same text.
        vcd_alpha: weight of visual contrastive decoding; above 0 turns it on, 1 is the paper's value.
        vcd_beta: its plausibility cutoff: keep tokens at least this many times as likely as the best; default 0.1.
        vcd_noise_step: diffusion steps of its noise, 0 to 999; default 500.
        stop: end the text before the first of these strings.
        timeout: seconds until DeadlineExceeded, above 0; None waits as long as the server works.
        request_id: identifies the request in logs and for `cancel`; printable characters.
        traceparent: the trace that the request belongs to, in W3C's format; sent with the call as metadata.
        measured: the caller reports the request's metrics to OpenTelemetry itself, so the server reports none for it.
        media_digest: identifies the media to load balancers, instead of their SHA-256, if it is already known.
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
