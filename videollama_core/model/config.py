"""The typed config of a VideoLLaMA 2 model: sizes of its parts, and how many media tokens they produce."""

from dataclasses import asdict, dataclass
from typing import Any

from videollama_core.protocol import limits
from videollama_core.protocol.errors import InvalidRequest

AUDIO_KINDS = ("audio", "video_with_audio")  # media kinds with audio


@dataclass(frozen=True)
class PixelConfig:
    """How the tower's image processor prepares a picture."""

    size: int  # S
    crop: bool  # CLIP: resize the shorter side to S, then centre crop; SigLIP: resize to S x S
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 0.00392156862745098

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The mean as an RGB colour of 0 to 255, for padding."""
        return tuple(int(255 * value) for value in self.mean)  # type: ignore[return-value]


@dataclass(frozen=True)
class TowerFamily:
    """What distinguishes a family of vision towers; everything else is in the tower's own config."""

    class_token: bool  # precedes the patches, and is dropped from the features
    pre_norm: bool  # a LayerNorm between embeddings and layers
    patch_bias: bool  # of the patch embedding's convolution
    crop: bool  # resize the shorter side to S, then centre crop; otherwise resize to S x S
    activation: str  # default, if the config has none
    eps: float  # default, if the config has none


# model_type of the tower's config, without "_vision_model" -> its family.
TOWER_FAMILIES = {
    "clip": TowerFamily(
        class_token=True, pre_norm=True, patch_bias=False, crop=True, activation="quick_gelu", eps=1e-5
    ),
    "siglip": TowerFamily(
        class_token=False, pre_norm=False, patch_bias=True, crop=False, activation="gelu_pytorch_tanh", eps=1e-6
    ),
}


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer of one of the known families."""

    kind: str  # key of TOWER_FAMILIES
    width: int
    mlp_width: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    activation: str
    eps: float
    select_layer: int  # index into the list of hidden states, embedding output first

    @property
    def family(self) -> TowerFamily:
        return TOWER_FAMILIES[self.kind]

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def used_layers(self) -> int:
        """Number of layers before the selected hidden state; the others never influence the output."""
        return self.layers + 1 + self.select_layer if self.select_layer < 0 else self.select_layer


@dataclass(frozen=True)
class AudioConfig:
    """BEATs. Sizes come from the stored tensors: the published folders do not state them."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    patch_width: int
    rows: int = 2998  # of a filterbank: 30 s
    bins: int = 128

    @property
    def tokens(self) -> int:
        """Audio tokens of 30 s, to which shorter audio is padded: one per patch of 16 rows and 16 bands."""
        return (self.rows // 16) * (self.bins // 16)


@dataclass(frozen=True)
class LanguageConfig:
    """The decoder: Mistral, Mixtral or Qwen2."""

    family: str
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    eps: float
    rope_theta: float
    max_positions: int
    tied: bool
    qkv_bias: bool
    experts: int = 0  # 0: a dense MLP
    experts_per_token: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """A whole VideoLLaMA 2 checkpoint."""

    connector: str
    num_frames: int
    pixels: PixelConfig
    vision: VisionConfig
    language: LanguageConfig
    audio: AudioConfig | None = None

    @property
    def media_tokens(self) -> int:
        """Media tokens of a video or an image."""
        return media_token_count(self.connector, self.num_frames, self.vision.grid)

    def frames_of(self, num_frames: int | None) -> int:
        """The number of frames to sample if `num_frames` are requested. Raises: InvalidRequest for an unsupported number."""
        if num_frames is None:
            return self.num_frames
        if not self.num_frames <= num_frames <= limits.FRAMES.value:
            raise InvalidRequest(
                f"num_frames is {num_frames}; this checkpoint takes {self.num_frames}, which it was trained on, "
                f"to {limits.FRAMES.value}"
            )
        return num_frames

    def tokens_of(self, kind: str, num_frames: int | None = None) -> int:
        """Media tokens of media of a kind (contract.MEDIA_KINDS).

        Raises: InvalidRequest if the model has no audio tower, or does not support the number of frames.
        """
        pictures = media_token_count(self.connector, self.frames_of(num_frames), self.vision.grid)
        if kind not in AUDIO_KINDS:
            return pictures
        if self.audio is None:
            raise InvalidRequest(
                f"this checkpoint has no audio tower, so it cannot take media of kind {kind}; use an audio-visual checkpoint"
            )
        return self.audio.tokens + (0 if kind == "audio" else pictures)

    @property
    def tokens_per_step(self) -> int:
        """Media tokens of one output time step of the connector."""
        return downsampled(self.vision.grid, self.connector) ** 2

    @property
    def connector_padding(self) -> int:
        """Padding of the connector's Conv3d on each axis."""
        return 1 if self.connector == "stc_connector" else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelConfig":
        pixels = dict(content["pixels"])
        pixels.update(mean=tuple(pixels["mean"]), std=tuple(pixels["std"]))
        return cls(
            connector=content["connector"],
            num_frames=content["num_frames"],
            pixels=PixelConfig(**pixels),
            vision=VisionConfig(**content["vision"]),
            language=LanguageConfig(**content["language"]),
            audio=AudioConfig(**content["audio"]) if content.get("audio") else None,
        )


def downsampled(length: int, connector: str) -> int:
    """Output length of an axis of the connector's Conv3d (kernel 2, stride 2)."""
    padding = {"stc_connector": 1, "stc_connector_v35": 0}[connector]
    return (length + 2 * padding - 2) // 2 + 1


def media_token_count(connector: str, num_frames: int, grid: int) -> int:
    """Media tokens of `num_frames` frames of grid x grid patches."""
    return downsampled(num_frames, connector) * downsampled(grid, connector) ** 2
