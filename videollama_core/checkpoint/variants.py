"""The released checkpoints and the constants that their folders lack.

Everything else about a checkpoint is read from its folder; this table supplies the vision towers' settings (the published
folders name the tower only by its hub id) and the expected counts.
"""

from dataclasses import dataclass

from videollama_core.model.config import media_token_count

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Hub id -> (config.json's vision_config, preprocessor_config.json), as published.
TOWERS: dict[str, tuple[dict, dict]] = {
    "openai/clip-vit-large-patch14-336": (
        {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": 336,
            "crop_size": 336,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "rescale_factor": 0.00392156862745098,
        },
    ),
    "google/siglip-so400m-patch14-384": (
        {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 384, "width": 384},
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.5, 0.5, 0.5),
            "rescale_factor": 0.00392156862745098,
        },
    ),
}


@dataclass(frozen=True)
class Variant:
    """One released checkpoint."""

    name: str
    family: str  # mistral | mixtral | qwen2
    tower: str  # key of TOWERS
    connector: str
    num_frames: int
    language_model: str
    base: bool = False  # a pretraining folder: the connector alone
    audio: bool = False

    @property
    def hub_id(self) -> str:
        """The id of its repository on the Hugging Face hub."""
        return f"DAMO-NLP-SG/{self.name}"

    @property
    def grid(self) -> int:
        """Patches per side of the tower's image; a remainder of the image is ignored."""
        vision, _ = TOWERS[self.tower]
        return int(vision["image_size"] // vision["patch_size"])

    @property
    def media_tokens(self) -> int:
        """Media tokens of a video or image: 845 for 8 frames with CLIP-336, 1521 for 16, 1352 for 16 with SigLIP-384."""
        return media_token_count(self.connector, self.num_frames, self.grid)


_CLIP, _SIGLIP = TOWERS
_MISTRAL, _MIXTRAL = "mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mixtral-8x7B-Instruct-v0.1"
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("VideoLLaMA2-7B-Base", "mistral", _CLIP, "stc_connector", 8, _MISTRAL, base=True),
        Variant("VideoLLaMA2-7B", "mistral", _CLIP, "stc_connector", 8, _MISTRAL),
        Variant("VideoLLaMA2-7B-16F-Base", "mistral", _CLIP, "stc_connector", 16, _MISTRAL, base=True),
        Variant("VideoLLaMA2-7B-16F", "mistral", _CLIP, "stc_connector", 16, _MISTRAL),
        Variant("VideoLLaMA2-8x7B-Base", "mixtral", _CLIP, "stc_connector", 8, _MIXTRAL, base=True),
        Variant("VideoLLaMA2-8x7B", "mixtral", _CLIP, "stc_connector", 8, _MIXTRAL),
        Variant("VideoLLaMA2-72B-Base", "qwen2", _CLIP, "stc_connector", 8, "Qwen/Qwen2-72B-Instruct", base=True),
        Variant("VideoLLaMA2-72B", "qwen2", _CLIP, "stc_connector", 8, "Qwen/Qwen2-72B-Instruct"),
        Variant(
            "VideoLLaMA2.1-7B-16F-Base", "qwen2", _SIGLIP, "stc_connector_v35", 16, "Qwen/Qwen2-7B-Instruct", base=True
        ),
        Variant("VideoLLaMA2.1-7B-16F", "qwen2", _SIGLIP, "stc_connector_v35", 16, "Qwen/Qwen2-7B-Instruct"),
        Variant("VideoLLaMA2.1-7B-AV", "qwen2", _SIGLIP, "stc_connector_v35", 16, "Qwen/Qwen2-7B-Instruct", audio=True),
    )
}

# Published shapes of the base language models (their config.json).
LANGUAGE_MODELS: dict[str, dict] = {
    _MISTRAL: {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    _MIXTRAL: {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
    | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen/Qwen2-7B-Instruct": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    },
    "Qwen/Qwen2-72B-Instruct": {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80}
    | {
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    },
}
MAX_POSITIONS = 32768  # of all of them
BEATS = {"width": 768, "mlp_width": 3072, "layers": 12, "heads": 12, "patch_width": 512}
