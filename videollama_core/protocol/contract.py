"""Every tensor that crosses a process, named once.

Stages are Triton models. `dims` are written as in config.pbtxt: -1 is dynamic; a stage with `max_batch_size` above 0 has
one more leading batch dimension on the wire. The tensors of `tensorrt_llm` are those of TensorRT-LLM 1.2.1's C++ backend
(triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt): names, types and meaning are theirs, so that
the CPU engine and the C++ backend can stand in for each other.
"""

from dataclasses import dataclass

MAX_MEDIA_BYTES = 512 * 2**20  # of one request; the server's message limit is 2 GiB - 1
MAX_REQUESTS = 64  # answered by the entry at a time; more are refused at once
MAX_NEW_TOKENS = 32768  # no published checkpoint has more positions
RUNNING_METRIC = "vl2_running_requests"  # gauge on the metrics port, by stage: requests being answered
MEDIA_KINDS = ("video", "image", "frames", "folder", "audio", "video_with_audio")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}  # names of files that hold one picture


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # Triton's name without the TYPE_ prefix, STRING for bytes
    dims: tuple[int, ...]
    meaning: str
    optional: bool = False

    @property
    def wire_dtype(self) -> str:
        """The KServe v2 name of the type: STRING travels as BYTES."""
        return "BYTES" if self.dtype == "STRING" else self.dtype

    def as_optional(self) -> "Tensor":
        return Tensor(self.name, self.dtype, self.dims, self.meaning, optional=True)


@dataclass(frozen=True)
class Stage:
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool = False
    max_batch_size: int = 0

    def input(self, name: str) -> Tensor:
        return next(tensor for tensor in self.inputs if tensor.name == name)


# Media, as the caller sends it.
MEDIA = Tensor(
    "media",
    "STRING",
    (-1,),
    "encoded file, or several (frames, folder); .npy bytes hold raw RGB: uint8 [H,W,3], or [T,H,W,3] alone",
)
MEDIA_KIND = Tensor(
    "media_kind",
    "STRING",
    (1,),
    "video (one file) | image | frames (every one is used) | folder (frames sampled at 3 per second) | audio | "
    "video_with_audio (with its audio track)",
)
START = Tensor("start", "FP64", (1,), "seconds; first moment of the video or audio to use", optional=True)
END = Tensor("end", "FP64", (1,), "seconds; last moment to use", optional=True)

# The question and how to answer it. An absent option means the checkpoint's own default.
QUESTION = Tensor("question", "STRING", (1,), "one user turn", optional=True)
MESSAGES = Tensor("messages", "STRING", (1,), "JSON list of {role, content}: a conversation", optional=True)
OPTIONS = (
    Tensor("max_new_tokens", "INT32", (1,), "at most this many tokens", optional=True),
    Tensor("temperature", "FP32", (1,), "0 is greedy", optional=True),
    Tensor("top_k", "INT32", (1,), "0 is off", optional=True),
    Tensor("top_p", "FP32", (1,), "in (0, 1]", optional=True),
    Tensor("repetition_penalty", "FP32", (1,), "above 0; on generated tokens only", optional=True),
    Tensor("seed", "UINT64", (1,), "same seed, same text", optional=True),
)
# Visual contrastive decoding (contrast.py), on the engines of our own scheduler.
VCD_ALPHA = Tensor("vcd_alpha", "FP32", (1,), "weight of the contrast to noised pixels; 0 is off", optional=True)
VCD_BETA = Tensor("vcd_beta", "FP32", (1,), "plausibility cutoff in [0, 1]; default 0.1", optional=True)
VCD_NOISE_STEP = Tensor("vcd_noise_step", "INT32", (1,), "of the diffusion, 0 to 999; default 500", optional=True)
CONTRAST_OPTIONS = (VCD_ALPHA, VCD_BETA, VCD_NOISE_STEP)
STOP = Tensor("stop", "STRING", (-1,), "the text ends before the first of these strings", optional=True)
PING = Tensor("ping", "BOOL", (1,), "true: answer at once with `process` alone", optional=True)

# Between the stages.
FRAMES = Tensor("frames", "UINT8", (-1, -1, -1, 3), "[T,S,S,3] RGB at tower size; T = 1 is an image, 0 is sound alone")
FILTERBANK = Tensor("filterbank", "FP32", (-1, -1), "[R,F] log mel energies rounded to bfloat16; R = 0 without sound")
FRAME_INDEX = Tensor("frame_index", "INT64", (-1,), "[T] position of each frame in the video, -1 for black padding")
FRAME_TIME = Tensor("frame_time", "FP64", (-1,), "[T] seconds into the video, NaN where unknown")
PREPROCESS_SPAN = Tensor("preprocess_span", "FP64", (2,), "Unix seconds when the work began and ended")
PERCEPTION_SPANS = Tensor("perception_spans", "FP64", (4,), "preprocess_span, then the same of the encoder")
TEXT = Tensor("text", "STRING", (1,), "UTF-8")

# TensorRT-LLM's.
INPUT_IDS = Tensor("input_ids", "INT32", (-1,), "prompt; media position k holds vocab_size + k")
INPUT_LENGTHS = Tensor("input_lengths", "INT32", (1,), "length of input_ids")
REQUEST_OUTPUT_LEN = Tensor("request_output_len", "INT32", (1,), "at most this many new tokens")
END_ID = Tensor("end_id", "INT32", (1,), "generation ends after this id", optional=True)
PAD_ID = Tensor("pad_id", "INT32", (1,), "prompt positions with this id are not attended to", optional=True)
STOP_WORDS_LIST = Tensor(
    "stop_words_list", "INT32", (2, -1), "row 0 ids of all words, row 1 their running end offsets padded with -1", True
)
TEMPERATURE = Tensor("temperature", "FP32", (1,), "softmax temperature", optional=True)
RUNTIME_TOP_K = Tensor("runtime_top_k", "INT32", (1,), "1 is greedy, 0 is off", optional=True)
RUNTIME_TOP_P = Tensor("runtime_top_p", "FP32", (1,), "nucleus", optional=True)
REPETITION_PENALTY = Tensor("repetition_penalty", "FP32", (1,), "1 is off", optional=True)
SEED = Tensor("seed", "UINT64", (1,), "of the request's own generator", optional=True)
RETURN_GENERATION_LOGITS = Tensor(
    "return_generation_logits", "BOOL", (1,), "also return generation_logits", optional=True
)
EXCLUDE_INPUT = Tensor("exclude_input_in_output", "BOOL", (1,), "output_ids without the prompt", optional=True)
STREAMING = Tensor("streaming", "BOOL", (1,), "true: one response per step, false: one at the end", optional=True)
STOP_REQUEST = Tensor("stop", "BOOL", (1,), "true: end the running request of the same request id", optional=True)
PROMPT_TABLE = Tensor("prompt_embedding_table", "FP32", (-1, -1), "[N,D] media tokens", optional=True)
PROMPT_VOCAB_SIZE = Tensor("prompt_vocab_size", "INT32", (1,), "N", optional=True)
PROMPT_EXTRA_IDS = Tensor(
    "prompt_table_extra_ids", "UINT64", (-1,), "media hash per position, 0 for text", optional=True
)
OUTPUT_IDS = Tensor("output_ids", "INT32", (-1, -1), "[beams, n] ids")
SEQUENCE_LENGTH = Tensor("sequence_length", "INT32", (-1,), "[beams] length of output_ids")
GENERATION_LOGITS = Tensor(
    "generation_logits",
    "FP32",
    (-1, -1, -1),
    "[beams, n, vocab] before any penalty or filter; with vcd_alpha the contrast",
)

PREPROCESS = Stage(
    "preprocess",
    (MEDIA, MEDIA_KIND, START, END),
    (FRAMES, FILTERBANK, FRAME_INDEX, FRAME_TIME, PREPROCESS_SPAN),
)
# Batched shapes ([1,N,D], [1,1]) leave the encoder, because the language model's stage has a batch dimension.
ENCODED_TABLE = Tensor(
    "prompt_embedding_table",
    "FP32",
    (1, -1, -1),
    "[1,N,D] media tokens; [1,2N,D] with noise: then those of noised pixels",
)
ENCODED_SIZE = Tensor("prompt_vocab_size", "INT32", (1, 1), "[1,1] rows of the table")
# Both or neither. They are part of the response cache's key, as every input is.
NOISE = (VCD_NOISE_STEP, Tensor("seed", "UINT64", (1,), "of the noise", optional=True))
MEDIA_HASH = Tensor(
    "media_hash", "UINT64", (1, 1), "[1,1] of what was encoded, never 0: keys and values are reused by it"
)
ENCODER = Stage(
    "encoder",
    (FRAMES, FILTERBANK.as_optional(), PREPROCESS_SPAN.as_optional(), *NOISE),
    (ENCODED_TABLE, ENCODED_SIZE, MEDIA_HASH, PERCEPTION_SPANS),
)
# Whoever calls `perception` asks for all its outputs: Triton 2.51 caches the response of an ensemble with the outputs
# that were asked for, and answers a request for others with an error or not at all.
PERCEPTION = Stage("perception", (*PREPROCESS.inputs, *NOISE), ENCODER.outputs)


def _batched(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, (1, *tensor.dims), tensor.meaning)


PROMPT = Stage(
    "prompt",
    # The spans are not looked at: an ensemble must use every output of a step, and of `perception` all are asked for.
    (
        QUESTION,
        MESSAGES,
        MEDIA_KIND.as_optional(),
        ENCODED_SIZE.as_optional(),
        MEDIA_HASH.as_optional(),
        PERCEPTION_SPANS.as_optional(),
        *OPTIONS,
    ),
    tuple(
        _batched(tensor)
        for tensor in (
            INPUT_IDS,
            INPUT_LENGTHS,
            REQUEST_OUTPUT_LEN,
            END_ID,
            PAD_ID,
            STOP_WORDS_LIST,
            TEMPERATURE,
            RUNTIME_TOP_K,
            RUNTIME_TOP_P,
            REPETITION_PENALTY,
            SEED,
            PROMPT_EXTRA_IDS,
        )
    ),
)
LANGUAGE_MODEL = Stage(
    "tensorrt_llm",
    (
        INPUT_IDS,
        INPUT_LENGTHS,
        REQUEST_OUTPUT_LEN,
        END_ID,
        PAD_ID,
        STOP_WORDS_LIST,
        TEMPERATURE,
        RUNTIME_TOP_K,
        RUNTIME_TOP_P,
        REPETITION_PENALTY,
        SEED,
        RETURN_GENERATION_LOGITS,
        EXCLUDE_INPUT,
        STREAMING,
        STOP_REQUEST,
        PROMPT_TABLE,
        PROMPT_VOCAB_SIZE,
        PROMPT_EXTRA_IDS,
        # Ours alone: TensorRT-LLM's backend has no such tensors, and the entry refuses the option there.
        VCD_ALPHA,
        VCD_BETA,
    ),
    (OUTPUT_IDS, SEQUENCE_LENGTH, GENERATION_LOGITS),
    decoupled=True,
    max_batch_size=1,
)
# The ids leave detokenize again: an ensemble of Triton 2.51 never answers a request for some of its outputs when one of
# the others is also an input of a step.
_GENERATED = (_batched(OUTPUT_IDS), _batched(SEQUENCE_LENGTH))
DETOKENIZE = Stage("detokenize", _GENERATED, (TEXT, *_GENERATED))
ENSEMBLE = Stage(
    "ensemble",
    (QUESTION, MESSAGES, MEDIA, MEDIA_KIND, START, END, *OPTIONS),
    # Nothing of perception: outputs of an ensemble may not mix steps before and after a decoupled one.
    DETOKENIZE.outputs,
    decoupled=True,
)
ENTRY = Stage(
    "videollama2",
    (
        QUESTION,
        MESSAGES,
        MEDIA.as_optional(),
        MEDIA_KIND.as_optional(),
        START,
        END,
        *OPTIONS,
        *CONTRAST_OPTIONS,
        STOP,
        PING,
    ),
    (
        TEXT,
        Tensor("output_ids", "INT32", (-1,), "ids behind this piece; held-back text may make pieces and ids lag"),
        Tensor("summary", "STRING", (1,), "on the last message: JSON with finish_reason, usage, seconds"),
        Tensor("process", "STRING", (1,), "name of the process that answers; a new one means the old one died"),
    ),
    decoupled=True,
)
STAGES = {
    stage.name: stage
    for stage in (ENTRY, PERCEPTION, PREPROCESS, ENCODER, LANGUAGE_MODEL, PROMPT, DETOKENIZE, ENSEMBLE)
}
