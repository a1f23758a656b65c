"""Every tensor that processes exchange, defined once.

Stages are Triton models. `dims` are written as in config.pbtxt: -1 is dynamic; a stage with `max_batch_size` above 0 has
one more leading batch dimension on the wire. The tensors of `tensorrt_llm` are those of TensorRT-LLM 1.2.1's C++ backend
(triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt): names, types and meaning are theirs, so that
the CPU engine and the C++ backend can stand in for each other.
"""

from videollama_core.protocol import limits
from videollama_core.protocol.tensors import Stage as Stage  # a part of the contract: imported from here
from videollama_core.protocol.tensors import Tensor as Tensor

MAX_MEDIA_BYTES = limits.MEDIA_BYTES.value
MAX_ANSWER_BYTES = limits.ANSWER_BYTES.value
MAX_REQUESTS = limits.REQUESTS.value
MAX_NEW_TOKENS = limits.NEW_TOKENS.value
RUNNING_METRIC = "vl2_running_requests"  # gauge on the metrics port, by stage: requests being answered
MEDIA_KINDS = ("video", "image", "frames", "folder", "audio", "video_with_audio")
SAMPLINGS = ("exact", "keyframes")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}  # names of files that hold one picture


# Media, as the client sends it.
MEDIA = Tensor(
    "media",
    "STRING",
    (-1,),
    "encoded file, or several (frames, folder); .npy bytes hold raw RGB: uint8 [H,W,3], or [T,H,W,3] as the only file",
    most=limits.MEDIA_FILES,
)
MEDIA_KIND = Tensor(
    "media_kind",
    "STRING",
    (1,),
    "video (one file) | image | frames (every one is used) | folder (frames sampled at 3 per second) | audio | "
    "video_with_audio (with its audio track)",
)
MEDIA_URL = Tensor(
    "media_url",
    "STRING",
    (1,),
    "instead of media, for kinds of one file: https://HOST/PATH or file:///PATH, where the server allows it",
    optional=True,
)
START = Tensor("start", "FP64", (1,), "seconds; where the part of the video or audio to use begins", optional=True)
END = Tensor("end", "FP64", (1,), "seconds; where it ends", optional=True)
NUM_FRAMES = Tensor(
    "num_frames",
    "INT32",
    (1,),
    "frames to sample from a video, gif or folder: the checkpoint's number, which is the default, to 32",
    True,
)
SAMPLING = Tensor(
    "sampling",
    "STRING",
    (1,),
    "exact, or keyframes: the keyframe of a video file nearest to each chosen frame, in a fraction of the time",
    optional=True,
)
WHICH = (START, END, NUM_FRAMES, SAMPLING)  # part and frames of a video

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
# Visual contrastive decoding (contrast.py), for which TensorRT-LLM has no tensors.
VCD_ALPHA = Tensor("vcd_alpha", "FP32", (1,), "weight of the contrast to noised pixels; 0 is off", optional=True)
VCD_BETA = Tensor("vcd_beta", "FP32", (1,), "plausibility cutoff in [0, 1]; default 0.1", optional=True)
VCD_NOISE_STEP = Tensor("vcd_noise_step", "INT32", (1,), "diffusion step, 0 to 999; default 500", optional=True)
OWN_OPTIONS = (VCD_ALPHA, VCD_BETA, VCD_NOISE_STEP)
STOP = Tensor("stop", "STRING", (-1,), "the text ends before the first of these strings", True, limits.STOP_STRINGS)
# Header of a question, equal for questions about equal media, so that a load balancer can route them to one server.
MEDIA_HEADER = "x-vl2-media"
PING = Tensor("ping", "BOOL", (1,), "true: answer at once with `process` alone", optional=True)

# Between the stages.
FRAMES = Tensor(
    "frames",
    "UINT8",
    (-1, -1, -1, 3),
    "[T,S,S,3] RGB at tower size; T = 1 is an image, 0 is audio alone",
    most=limits.FRAME_VALUES,
)
FILTERBANK = Tensor(
    "filterbank",
    "FP32",
    (-1, -1),
    "[R,F] log mel energies rounded to bfloat16; R = 0 without audio",
    most=limits.FILTERBANK_VALUES,
)
FRAME_INDEX = Tensor("frame_index", "INT64", (-1,), "[T] position of each frame in the video, -1 for black padding")
FRAME_TIME = Tensor("frame_time", "FP64", (-1,), "[T] seconds into the video, NaN where unknown")
PREPROCESS_SPAN = Tensor("preprocess_span", "FP64", (2,), "Unix seconds at which the work began and ended")
PERCEPTION_SPANS = Tensor("perception_spans", "FP64", (4,), "preprocess_span, then the encoder's")
TEXT = Tensor("text", "STRING", (1,), "UTF-8")

# TensorRT-LLM's own.
INPUT_IDS = Tensor("input_ids", "INT32", (-1,), "prompt; media position k holds vocab_size + k", most=limits.POSITIONS)
INPUT_LENGTHS = Tensor("input_lengths", "INT32", (1,), "length of input_ids")
REQUEST_OUTPUT_LEN = Tensor("request_output_len", "INT32", (1,), "at most this many new tokens")
END_ID = Tensor("end_id", "INT32", (1,), "generation ends after this id", optional=True)
PAD_ID = Tensor("pad_id", "INT32", (1,), "prompt positions with this id are not attended to", optional=True)
STOP_WORDS_LIST = Tensor(
    "stop_words_list",
    "INT32",
    (2, -1),
    "row 0: ids of all words; row 1: their cumulative end offsets, padded with -1",
    True,
    limits.STOP_WORD_IDS,
)
TEMPERATURE = Tensor("temperature", "FP32", (1,), "softmax temperature", optional=True)
RUNTIME_TOP_K = Tensor("runtime_top_k", "INT32", (1,), "1 is greedy, 0 is off", optional=True)
RUNTIME_TOP_P = Tensor("runtime_top_p", "FP32", (1,), "nucleus", optional=True)
REPETITION_PENALTY = Tensor("repetition_penalty", "FP32", (1,), "1 is off", optional=True)
SEED = Tensor("seed", "UINT64", (1,), "of the request's own random generator", optional=True)
RETURN_GENERATION_LOGITS = Tensor(
    "return_generation_logits", "BOOL", (1,), "also return generation_logits", optional=True
)
EXCLUDE_INPUT = Tensor("exclude_input_in_output", "BOOL", (1,), "output_ids without the prompt", optional=True)
STREAMING = Tensor("streaming", "BOOL", (1,), "true: one response per step, false: one at the end", optional=True)
STOP_REQUEST = Tensor("stop", "BOOL", (1,), "true: end the running request of the same request id", optional=True)
PROMPT_TABLE = Tensor("prompt_embedding_table", "FP32", (-1, -1), "[N,D] media tokens", True, limits.TABLE_VALUES)
PROMPT_VOCAB_SIZE = Tensor("prompt_vocab_size", "INT32", (1,), "N", optional=True)
PROMPT_EXTRA_IDS = Tensor(
    "prompt_table_extra_ids", "UINT64", (-1,), "media hash per position, 0 for text", True, limits.POSITIONS
)
OUTPUT_IDS = Tensor("output_ids", "INT32", (-1, -1), "[beams, n] ids", most=limits.POSITIONS)
SEQUENCE_LENGTH = Tensor("sequence_length", "INT32", (-1,), "[beams] length of output_ids", most=limits.BEAMS)
GENERATION_LOGITS = Tensor(
    "generation_logits",
    "FP32",
    (-1, -1, -1),
    "[beams, n, vocab] before any penalty or filter; contrasted with vcd_alpha",
)
# TensorRT-LLM's blocks have more positions; its backend returns this only with `return_perf_metrics`, which the entry does not send.
REUSED_BLOCKS = Tensor(
    "kv_cache_reused_blocks",
    "INT32",
    (1,),
    "with the first ids: prompt blocks reused from the KV cache, if any; a block is one position",
)

CALLER = Tensor(
    "caller", "STRING", (1,), "the entry's id of the waiting request; work stops when it ends", optional=True
)
PREPROCESS = Stage(
    "preprocess",
    (MEDIA, MEDIA_KIND, *WHICH, CALLER),
    (FRAMES, FILTERBANK, FRAME_INDEX, FRAME_TIME, PREPROCESS_SPAN),
)
# The encoder returns batched shapes ([1,N,D], [1,1]) because the language model's stage has a batch dimension.
ENCODED_TABLE = Tensor(
    "prompt_embedding_table",
    "FP32",
    (1, -1, -1),
    "[1,N,D] media tokens; with noise [1,2N,D], those of noised pixels last",
)
ENCODED_SIZE = Tensor("prompt_vocab_size", "INT32", (1, 1), "[1,1] rows of the table; 0: call again")
# Sent together or not at all.
NOISE = (VCD_NOISE_STEP, Tensor("seed", "UINT64", (1,), "of the noise", optional=True))
MEDIA_HASH = Tensor("media_hash", "UINT64", (1, 1), "[1,1] of what was encoded, never 0; decides KV cache reuse")
# With a caller, the encoder works in turns: no rows means that work is left, and the caller calls again with its id
# alone. Without a caller, it answers when it is done.
ENCODER = Stage(
    "encoder",
    (FRAMES.as_optional(), FILTERBANK.as_optional(), PREPROCESS_SPAN.as_optional(), *NOISE, CALLER),
    (ENCODED_TABLE, ENCODED_SIZE, MEDIA_HASH, PERCEPTION_SPANS),
)
PERCEPTION = Stage("perception", (*PREPROCESS.inputs, *NOISE), (*ENCODER.outputs, FRAME_INDEX, FRAME_TIME))


_PROMPT_AND_SAMPLING = (
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
)
PROMPT = Stage(
    "prompt",
    (QUESTION, MESSAGES, MEDIA_KIND.as_optional(), ENCODED_SIZE.as_optional(), MEDIA_HASH.as_optional(), *OPTIONS),
    tuple(tensor.batched() for tensor in (*_PROMPT_AND_SAMPLING, PROMPT_EXTRA_IDS)),
)
# Ours alone: TensorRT-LLM's backend has no such tensors, and the entry rejects these options there.
OWN_SAMPLING = (VCD_ALPHA, VCD_BETA)
# Tensor of the language model -> field of ResolvedSampling. Tensors whose values depend on one another are left out.
SAMPLING_FIELDS = {
    TEMPERATURE.name: "temperature",
    RUNTIME_TOP_P.name: "top_p",
    REPETITION_PENALTY.name: "repetition_penalty",
    SEED.name: "seed",
} | {tensor.name: tensor.name for tensor in OWN_SAMPLING}
LANGUAGE_MODEL = Stage(
    "tensorrt_llm",
    (
        *_PROMPT_AND_SAMPLING,
        RETURN_GENERATION_LOGITS,
        EXCLUDE_INPUT,
        STREAMING,
        STOP_REQUEST,
        PROMPT_TABLE,
        PROMPT_VOCAB_SIZE,
        PROMPT_EXTRA_IDS,
        *OWN_SAMPLING,
    ),
    (OUTPUT_IDS, SEQUENCE_LENGTH, GENERATION_LOGITS, REUSED_BLOCKS),
    decoupled=True,
    max_batch_size=1,
)
# detokenize returns the ids as well: an ensemble of Triton 2.51 never answers a request for a subset of its outputs if
# another output is also an input of a step.
_GENERATED = (OUTPUT_IDS.batched(), SEQUENCE_LENGTH.batched())
DETOKENIZE = Stage("detokenize", _GENERATED, (TEXT, *_GENERATED))
ENSEMBLE = Stage(
    "ensemble",
    (QUESTION, MESSAGES, MEDIA, MEDIA_KIND, START, END, *OPTIONS),
    # No outputs of perception: an ensemble may not mix outputs of steps before and after a decoupled one.
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
        MEDIA_URL,
        *WHICH,
        *OPTIONS,
        *OWN_OPTIONS,
        STOP,
        PING,
    ),
    (
        TEXT,
        Tensor("output_ids", "INT32", (-1,), "ids behind this piece; text that is held back comes after its ids"),
        Tensor("summary", "STRING", (1,), "on the last message: JSON with finish_reason, usage, seconds, frames"),
        Tensor(
            "process",
            "STRING",
            (1,),
            "SERVER:PROCESS that answers; another process of the same server means that the earlier one died",
        ),
    ),
    decoupled=True,
)
STAGES = {
    stage.name: stage
    for stage in (ENTRY, PERCEPTION, PREPROCESS, ENCODER, LANGUAGE_MODEL, PROMPT, DETOKENIZE, ENSEMBLE)
}
