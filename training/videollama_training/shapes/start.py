"""Writes the tiny checkpoint to start training from: published layout, seeded random weights, and its own small tokenizer."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import nn

from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.model import connector, vision
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder
from videollama_training.shapes.tower import pretrain_tower

TOWER = "towers/siglip-tiny-patch8-64"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_LAYERS = 4  # of the language model
VOCAB_SIZE = 640  # rows of the embedding; the tokenizer may use fewer
# Qwen2's conversation format without its default system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,  # the last one is stored but never used, as in the published towers
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
PIXELS = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 64, "width": 64},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 0.00392156862745098,
    "resample": 3,
}
LANGUAGE = {
    "architectures": ["Videollama2Qwen2ForCausalLM"],
    "model_type": "videollama2_qwen2",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "mm_vision_tower": TOWER,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": VISION["hidden_size"],
    "mm_projector_type": "stc_connector_v35",
    "num_frames": 8,
    "use_mm_proj": True,
}


def make_start(folder: Path, texts: Iterable[str], seed: int, tower_steps: int = 0) -> None:
    """Write the checkpoint, with the tower's settings in a subfolder.

    Args:
        texts: what the tokenizer is trained on.
        tower_steps: number of pretraining steps of the tower (tower.py). All other parts have random weights.
    """
    (folder / TOWER).mkdir(parents=True, exist_ok=True)
    _write(folder / TOWER / "config.json", {"model_type": "siglip", "vision_config": VISION})
    _write(folder / TOWER / "preprocessor_config.json", PIXELS)
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {
                str(index): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
                for token, index in ids.items()
            },
            "bos_token": None,
            "eos_token": SPECIAL[2],
            "pad_token": SPECIAL[0],
            "unk_token": None,
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": LANGUAGE["max_position_embeddings"],
        },
    )
    ends = [ids[SPECIAL[2]], ids[SPECIAL[0]]]
    _write(folder / "config.json", LANGUAGE | {"eos_token_id": ends[0], "bos_token_id": ends[1]})
    _write(folder / "generation_config.json", {"eos_token_id": ends, "repetition_penalty": 1.0, "top_k": 20})
    save_file(_first_tensors(folder, seed, tower_steps), folder / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE vocabulary on the world's words; any other text is encoded in bytes."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def _first_tensors(folder: Path, seed: int, tower_steps: int) -> dict[str, torch.Tensor]:
    config = read_model_config(folder)
    torch.manual_seed(seed)
    tower = VisionEncoder(config.vision, config.pixels)
    parts: tuple[tuple[str, nn.Module], ...] = (
        (vision.PREFIX, tower),
        (connector.PREFIX, Connector(config)),
        ("", Decoder(config.language)),
    )
    tensors = {}
    for prefix, module in parts:
        for name, tensor in module.state_dict().items():
            std = _initial_std(name, tensor)
            if std:
                nn.init.normal_(tensor, std=std)
        if module is tower and tower_steps:
            pretrain_tower(tower, config.pixels, tower_steps, seed)
        for name, tensor in module.state_dict().items():
            tensors[prefix + name] = tensor.to(torch.bfloat16).contiguous()
    return tensors


def _initial_std(name: str, tensor: torch.Tensor) -> float | None:
    """Standard deviation of a matrix's random values; None keeps the module's own initialization.

    Embeddings are about as large as the layers' outputs, so that a token is not lost in the first layer; matrices that write to
    the residual stream are smaller by the square root of the number of additions.
    """
    if tensor.dim() != 2:
        return None
    if "embed_tokens" in name:
        return 0.5
    if "position_embedding" in name:
        return 0.2
    if "lm_head" in name:
        return 0.02
    adds = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight"))
    additions = 2 * NUM_LAYERS if adds else 1
    return (tensor.shape[1] * additions) ** -0.5
