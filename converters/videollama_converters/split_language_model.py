"""The decoder as a plain Hugging Face directory: what TensorRT-LLM, ModelOpt, vLLM and transformers read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from torch import Tensor

from videollama_core.checkpoint import CheckpointParts
from videollama_core.config import LanguageConfig, read_json
from videollama_core.errors import CheckpointMismatch

SHARD_BYTES = 2 * 2**30
ARCHITECTURES = {
    "mistral": ("MistralForCausalLM", "mistral"),
    "mixtral": ("MixtralForCausalLM", "mixtral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
}
# Keys of config.json that belong to the video model or to training, not to the decoder.
_VIDEO_KEYS = (
    "num_frames",
    "image_aspect_ratio",
    "tokenizer_padding_side",
    "tokenizer_model_max_length",
    "freeze_mm_mlp_adapter",
    "hidden_size_a",
    "max_sequence_length",
    "_name_or_path",
    "use_cache",
    "transformers_version",
)
_VIDEO_PREFIXES = ("mm_", "tune_mm", "use_mm")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def split_language_model(parts: CheckpointParts, folder: Path, tick: Callable[[], None]) -> None:
    """Write the language model's tensors, in their stored dtype, and its config and tokenizer.

    Holds one output shard (2 GiB) at a time. `tick` is called for each tensor.
    """
    folder.mkdir(parents=True)
    _write_tensors(parts, folder, tick)
    source = parts.shards.folder
    write_config(source, parts.config.language, folder)
    copy_tokenizer(source, folder)


def _write_tensors(parts: CheckpointParts, folder: Path, tick: Callable[[], None]) -> None:
    written: list[tuple[Path, list[str]]] = []
    total = size = 0
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        path = folder / f"shard-{len(written)}"
        save_file(batch, path, metadata={"format": "pt"})
        written.append((path, list(batch)))
        batch.clear()

    for name, read in parts.language_sources().items():
        if parts.config.language.tied and name == "lm_head.weight":
            tick()
            continue
        tensor = read().contiguous()
        size_of = tensor.numel() * tensor.element_size()
        if batch and size + size_of > SHARD_BYTES:
            flush()
            size = 0
        # A copy: safetensors refuses tensors that share memory with the file they are read from.
        batch[name] = tensor.clone()
        size += size_of
        total += size_of
        tick()
    flush()
    if len(written) == 1:
        written[0][0].rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, (path, names) in enumerate(written, start=1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        path.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def write_config(source: Path, language: LanguageConfig, folder: Path) -> None:
    content = {
        key: value
        for key, value in read_json(source / "config.json").items()
        if key not in _VIDEO_KEYS and not key.startswith(_VIDEO_PREFIXES)
    }
    architecture, model_type = ARCHITECTURES[language.family]
    content.update(architectures=[architecture], model_type=model_type)
    (folder / "config.json").write_text(json.dumps(content, indent=2), "utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Tokenizer files as they are; tokenizer.json is made from the slow tokenizer's files where it is missing."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointMismatch(
            f"{source} has no tokenizer_config.json; copy the checkpoint's tokenizer files into it"
        )
    if not (folder / "tokenizer.json").is_file():
        make_fast_tokenizer(source, folder / "tokenizer.json")


def make_fast_tokenizer(source: Path, path: Path) -> None:
    """tokenizer.json from tokenizer.model, or from vocab.json and merges.txt."""
    try:
        if (source / "tokenizer.model").is_file():
            tokenizer = _from_sentencepiece(source)
        else:
            from transformers import AutoTokenizer  # seconds to import, and rarely needed

            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True).backend_tokenizer
        tokenizer.save(str(path))
    except (OSError, ValueError, AttributeError, ImportError, KeyError, RuntimeError) as error:
        raise CheckpointMismatch(
            f"{source} has no tokenizer.json, and none can be made of tokenizer.model, or vocab.json and merges.txt: {error}"
        ) from error


def _from_sentencepiece(source: Path) -> Tokenizer:
    """Llama's BPE vocabulary with byte fallback; transformers' own converter needs another protobuf than tritonclient.

    SentencePiece stores no merges, but scores: a pair of pieces merges as early as the score of what it makes is high.
    """
    from sentencepiece import SentencePieceProcessor

    config = read_json(source / "tokenizer_config.json")
    model = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    ids = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
    merges = []
    for piece, index in ids.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(model.get_score(index), pair) for pair in known]
    merges.sort(key=lambda entry: -entry[0])
    unknown = model.id_to_piece(model.unk_id())
    tokenizer = Tokenizer(
        BPE(ids, [pair for _, pair in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True)  # type: ignore[arg-type]
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for _, token in sorted((int(index), token) for index, token in config.get("added_tokens_decoder", {}).items()):
        made = AddedToken(token.pop("content"), **token)
        (tokenizer.add_special_tokens if made.special else tokenizer.add_tokens)([made])
    return tokenizer
