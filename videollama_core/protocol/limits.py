"""Every limit on one request or checkpoint, in one table; docs/security.md shows it.

A limit is checked before work or memory is spent on what it limits: `LIMIT.check(count, "the question")`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError


@dataclass(frozen=True)
class Limit:
    """The largest allowed value of something, inclusive."""

    name: str
    value: int
    unit: str
    meaning: str

    def check(self, count: float, what: str, error: Callable[[str], VideoLlamaError] = InvalidRequest) -> None:
        """Raises: `error` if `count` is above the limit; its message begins with `what`, such as "the question"."""
        if count > self.value:
            raise error(f"{what} has {count} {self.unit}; the limit is {self.value} ({self.name})")


LIMITS: dict[str, Limit] = {}  # by name, in the order of the page


def _limit(name: str, value: int, unit: str, meaning: str) -> Limit:
    LIMITS[name] = Limit(name, value, unit, meaning)
    return LIMITS[name]


# The question.
QUESTION_CHARACTERS = _limit(
    "question_characters",
    2**18,
    "characters",
    "in the question, or in all messages together: 8 for each of 32768 positions",
)
MESSAGES = _limit("messages", 1024, "messages", "in one conversation")
MESSAGES_BYTES = _limit("messages_bytes", 2 * 2**20, "bytes", "in the JSON text of a conversation, escapes included")
STOP_STRINGS = _limit("stop_strings", 16, "strings", "in `stop`")
STOP_CHARACTERS = _limit("stop_characters", 1000, "characters", "in one string of `stop`")
NEW_TOKENS = _limit("new_tokens", 32768, "tokens", "for `max_new_tokens`; no published checkpoint has more positions")
WORD_CHARACTERS = _limit("word_characters", 4096, "characters", "in any other string, such as `media_kind`")
REQUEST_ID_CHARACTERS = _limit("request_id_characters", 128, "characters", "in a request id; all printable")

ANSWER_BYTES = _limit("answer_bytes", 16 * 2**20, "bytes", "in one message of an answer that the client accepts")
SILENT_SECONDS = _limit("silent_seconds", 60, "seconds", "without a message before the client gives a request up")
WORKING_SECONDS = _limit(
    "working_seconds", 10, "seconds", "between two messages of the entry that it still has a request"
)

# Tensors between the stages: of one request.
POSITIONS = _limit("positions", 2**18, "positions", "in `input_ids` and the tensors that go with them")
STOP_WORD_IDS = _limit("stop_word_ids", 2**14, "ids", "in `stop_words_list`, offsets included")
BEAMS = _limit("beams", 1, "beams", "in `output_ids`")
TABLE_VALUES = _limit("table_values", 2**28, "values", "in a table of media tokens (rows x width)")
FRAME_VALUES = _limit("frame_values", 2**28, "values", "in frames at tower size: 32 of 1672 x 1672")
FILTERBANK_VALUES = _limit("filterbank_values", 2**22, "values", "in a filterbank")

# Media.
MEDIA_BYTES = _limit(
    "media_bytes", 512 * 2**20, "bytes", "in all files of a request; a message holds 2 GiB - 1 at most"
)
MEDIA_FILES = _limit("media_files", 10_000, "files", "in a request (a folder of frames)")
FRAMES = _limit("frames", 32, "frames", "used of one video, as in the reference")
SEGMENT_SECONDS = _limit("segment_seconds", 10**8, "seconds", "for `start` and `end`")

PICTURE_PIXELS = _limit("picture_pixels", 8192 * 4320, "pixels", "in one picture of any media: 8K")
PICTURE_SIDE = _limit("picture_side", 32768, "pixels", "on a picture's longer side")
ASPECT_RATIO = _limit("aspect_ratio", 100, "to 1", "between a picture's sides")
RESIZED_PIXELS = _limit("resized_pixels", 2**26, "pixels", "in a picture after it is resized, or padded to a square")
SCAN_PIXELS = _limit("scan_pixels", 2**29, "pixels", "in all scans of a (progressive) JPEG: 15 of 8K")
GIF_FRAMES = _limit("gif_frames", 10_000, "frames", "in a GIF")
GIF_PIXELS = _limit("gif_pixels", 2**30, "pixels", "in a GIF's frames up to the last one used")

VIDEO_STREAMS = _limit("video_streams", 64, "streams", "in a video file: video, audio and subtitles")
VIDEO_FRAMES = _limit("video_frames", 2_000_000, "frames", "in a video: 18 hours at 30 a second")
VIDEO_PIXELS = _limit(
    "video_pixels", 2**36, "pixels", "in a video's frames up to the last one used: 18 minutes of 1080p"
)

AUDIO_RATE = _limit("audio_rate", 384_000, "samples per second", "of audio; the least is 1000")
AUDIO_CHANNELS = _limit("audio_channels", 64, "channels", "in an audio stream")
AUDIO_SAMPLES = _limit("audio_samples", 2**29, "samples", "decoded of each audio channel: 3 hours at 48 kHz")
TRACK_SECONDS = _limit("track_seconds", 4 * 3600, "seconds", "of a video's audio track")
DECODE_SECONDS = _limit("decode_seconds", 120, "seconds", "of processor time to decode the media of one request")
PICTURE_SECONDS = _limit("picture_seconds", 10, "seconds", "of processor time to decode an image")
DECODE_MEMORY = _limit("decode_memory", 2**30, "bytes", "of memory for decoding, beside the media themselves")

# Media by its URL.
MEDIA_URL_CHARACTERS = _limit("media_url_characters", 2048, "characters", "in `media_url`")
FETCH_SECONDS = _limit("fetch_seconds", 30, "seconds", "for a fetch by URL: look-up, redirects and transfer together")
FETCH_REDIRECTS = _limit("fetch_redirects", 3, "redirects", "for a fetch by URL, each checked like the URL itself")
FETCHES = _limit("fetches", 8, "fetches", "by URL at a time; further ones wait, within their own `fetch_seconds`")

# The server.
REQUESTS = _limit("requests", 64, "requests", "answered by an entry at a time; the next one is refused at once")

# A checkpoint.
JSON_BYTES = _limit(
    "json_bytes", 16 * 2**20, "bytes", "in a JSON file of a checkpoint; the largest published one has 7 MB"
)
HEADER_BYTES = _limit("header_bytes", 8 * 2**20, "bytes", "in a weight file's list of tensors")
TEMPLATE_CHARACTERS = _limit("template_characters", 2**16, "characters", "in a chat template")
TEMPLATE_STEPS = _limit("template_steps", 1_000_000, "steps", "of a chat template to render one conversation")
RENDERED_CHARACTERS = _limit(
    "rendered_characters", 2**21, "characters", "that a chat template renders from one conversation"
)
STREAMS = _limit("streams", 256, "streams", "at a time on one connection")
CALLS = _limit("calls", 1024, "calls", "open at the endpoint at a time, idle streams included")
METADATA_BYTES = _limit("metadata_bytes", 16 * 2**10, "bytes", "in a call's headers, or in an HTTP request's head")
ENVELOPE_BYTES = _limit("envelope_bytes", 4 * 2**20, "bytes", "in a request, outside `raw_input_contents`")
REQUEST_FIELDS = _limit("request_fields", 4096, "fields", "in the protobuf message of a request")
