"""The spatial-temporal connector (STC): vision features -> media tokens.

Parameter names are the published ones below `model.mm_projector.`. U: distinct frames, T: frames in time, g: patches per
side, C: width of the tower, D: width of the language model; feature maps are channels first.

The Conv3d has kernel 2 and stride 2, so each output time step depends on two neighbouring frames, which no other step uses.
Repeated frames (an image, a short video, black padding) therefore need the spatial stage once, and time steps over the
same pair of frames need the rest once: frame_plan.py. This is exact, not an approximation.
"""

from torch import Tensor, nn
from torch.nn import functional

from videollama_core.model.config import ModelConfig

PREFIX = "model.mm_projector."
EPS = 1e-5  # of every norm here
BLOCKS = 4  # per stage


class ConvNorm(nn.Module):
    """Convolution without bias, LayerNorm over channels (published as `bn`), and optionally SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, activate: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.LayerNorm(outputs, eps=EPS)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # channels last for the norm
        return functional.silu(x) if self.activate else x


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * functional.sigmoid(self.fc2(functional.silu(self.fc1(mean))))


class Block(nn.Module):
    """RegNet's bottleneck block with a depthwise 3x3 and squeeze-excite."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, width)
        self.conv2 = ConvNorm(width, width, kernel=3, groups=width)
        self.se = SqueezeExcite(width, round(0.25 * inputs))
        self.conv3 = ConvNorm(width, width, activate=False)
        self.downsample = ConvNorm(inputs, width, activate=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.silu(self.conv3(self.se(self.conv2(self.conv1(x)))) + shortcut)


class RegStage(nn.Module):
    """A RegNet stage of BLOCKS blocks: maps [N, inputs, h, w] -> [N, width, h, w]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        for number in range(1, BLOCKS + 1):
            self.add_module(f"b{number}", Block(inputs if number == 1 else width, width))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.children():
            x = block(x)
        return x


class Connector(nn.Module):
    """vision_features [U, g*g, C], frame_index int64 [T'] -> media tokens [steps, tokens per step, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.language.width
        self.grid = config.vision.grid
        self.s1 = RegStage(config.vision.width, width)
        self.sampler = nn.Sequential(
            nn.Conv3d(width, width, kernel_size=2, stride=2, padding=config.connector_padding), nn.SiLU()
        )
        self.s2 = RegStage(width, width)
        self.readout = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def maps(self, features: Tensor) -> Tensor:
        return features.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [U, g*g, C] -> [U, C, g, g]

    def spatial(self, features: Tensor) -> Tensor:
        return self.s1(self.maps(features))  # [U, D, g, g]

    def volume(self, maps: Tensor, frame_index: Tensor) -> Tensor:
        """The maps of one video's frames in time: [U, D, g, g] -> [1, D, T', g, g]."""
        return maps.index_select(0, frame_index).transpose(0, 1).unsqueeze(0)

    def rows(self, volume: Tensor) -> Tensor:
        steps = self.sampler(volume)  # [M, D, T', g, g] -> [M, D, steps, g', g']
        return steps.transpose(1, 2).flatten(0, 1)  # [M * steps, D, g', g']

    def tokens(self, rows: Tensor) -> Tensor:
        return self.readout(rows.flatten(2).transpose(1, 2))  # [M * steps, D, g', g'] -> [M * steps, g'*g', D]

    def temporal(self, volume: Tensor) -> Tensor:
        tokens = self.tokens(self.s2(self.rows(volume)))
        return tokens.unflatten(0, (volume.shape[0], -1))

    def forward(self, features: Tensor, frame_index: Tensor) -> Tensor:
        return self.temporal(self.volume(self.spatial(features), frame_index)).squeeze(0)
