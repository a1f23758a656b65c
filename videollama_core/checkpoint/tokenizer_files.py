"""A checkpoint's tokenizer files, with the fast tokenizer.json added if it has only the slow tokenizer's files."""

import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from videollama_core.checkpoint.files import find_file, in_words, read_json
from videollama_core.protocol.errors import CheckpointMismatch
from videollama_core.protocol.limits import JSON_BYTES as TOKENIZER_BYTES

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
_LONGEST_PIECE = 512  # characters; 16 in Mistral's


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files unchanged; make tokenizer.json from the slow tokenizer's files if it is missing.

    Raises: CheckpointMismatch.
    """
    for name in TOKENIZER_FILES:
        path = find_file(source, name)
        if path is not None:
            TOKENIZER_BYTES.check(path.stat().st_size, str(path), CheckpointMismatch)
            shutil.copyfile(path, folder / name)
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointMismatch(
            f"{source} has no tokenizer_config.json; copy the checkpoint's tokenizer files into it"
        )
    if not (folder / "tokenizer.json").is_file():
        make_fast_tokenizer(source, folder / "tokenizer.json")


def make_fast_tokenizer(source: Path, path: Path) -> None:
    """Write tokenizer.json, made from tokenizer.model, or from vocab.json and merges.txt. Raises: CheckpointMismatch."""
    sources = ("tokenizer.model",), ("vocab.json", "merges.txt")
    if not any(all((source / name).is_file() for name in names) for names in sources):
        # transformers would make a tokenizer of the special tokens alone.
        raise CheckpointMismatch(
            f"{source} has no tokenizer.json, nor tokenizer.model, nor vocab.json with merges.txt: copy the checkpoint's "
            "tokenizer files into it"
        )
    try:
        if (source / "tokenizer.model").is_file():
            tokenizer = _from_sentencepiece(source)
        else:
            from transformers import AutoTokenizer  # seconds to import, and rarely needed

            tokenizer = AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            ).backend_tokenizer
        tokenizer.save(str(path))
    except Exception as error:  # of three libraries, which have no common root
        raise CheckpointMismatch(
            f"{source} has no tokenizer.json, and none can be made from tokenizer.model, or vocab.json and merges.txt: "
            f"{in_words(error)}"
        ) from error


def _from_sentencepiece(source: Path) -> Tokenizer:
    """Llama's BPE vocabulary with byte fallback; transformers' own converter needs another protobuf than tritonclient.

    SentencePiece stores scores instead of merges: the higher the score of the merged piece, the earlier its pair merges.
    """
    from sentencepiece import SentencePieceProcessor

    config = read_json(source / "tokenizer_config.json")
    model = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    ids = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
    longest = max(map(len, ids), default=0)
    if longest > _LONGEST_PIECE:
        raise CheckpointMismatch(f"a piece has {longest} characters; expected at most {_LONGEST_PIECE}")
    merges = []
    for piece, index in ids.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(model.get_score(index), pair) for pair in known]
    merges.sort(key=lambda entry: -entry[0])
    unknown = model.id_to_piece(model.unk_id())
    tokenizer = Tokenizer(BPE(ids, [pair for _, pair in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for _, token in sorted((int(index), token) for index, token in config.get("added_tokens_decoder", {}).items()):
        added = AddedToken(token.pop("content"), **token)
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    return tokenizer
