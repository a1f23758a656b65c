"""Times of the PyTorch engine at a published size, random weights, each beside its roofline.

A roofline is the larger of work / peak arithmetic and bytes / peak bandwidth of the GPU's maker; the work is counted here.
What the card itself reaches in one large product and one large copy stands beside those peaks.
"""

import statistics
import time
from typing import Any

import numpy as np
import torch

from videollama_benchmarks.load.roofline import encoder_work, prefill_work, step_seconds
from videollama_converters.gpus import GPUS, Gpu
from videollama_core.checkpoint.read_config import published_config
from videollama_core.engines.media_encoder import to_host
from videollama_core.engines.torch_encoders import TorchEncoders
from videollama_core.generation.torch_runner import TorchRunner
from videollama_core.model.config import ModelConfig
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder
from videollama_core.protocol.messages import ResolvedSampling
from videollama_core.sampling import Sampler

REPEATS = 10
NEW_TOKENS = 64
DTYPE = torch.bfloat16


def randomised(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Weights about as large as trained ones, drawn on the device."""
    module = module.to(DTYPE).to_empty(device=device).eval().requires_grad_(False)
    for name, value in module.named_parameters():
        if value.dim() < 2:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            value.normal_(0.0, float(np.prod(value.shape[1:])) ** -0.5)
    return module


def timed(run: Any, repeats: int = REPEATS) -> dict[str, float]:
    """Median and spread in milliseconds, warm."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        run()
    wait()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        wait()
        taken.append(1e3 * (time.perf_counter() - began))
    return {"milliseconds": statistics.median(taken), "least": min(taken), "most": max(taken)}


def card() -> tuple[str, Gpu]:
    """The GPU's name, and the published figures of the nearest GPU in the plan."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: a rehearsal on the CPU"
    key = next((key for key in ("H200", "H100", "L40S", "A100-80") if key.split("-")[0] in name), "H100")
    return name, GPUS[key]


def reached(device: torch.device) -> dict[str, float]:
    """What the card achieves: TFLOP/s of a square product, TB/s read and written by a copy."""
    size, count = (8192, 2**31) if device.type == "cuda" else (64, 2**16)
    left, right = (torch.randn(size, size, dtype=DTYPE, device=device) for _ in range(2))
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    product, copy = timed(lambda: left @ right), timed(lambda: target.copy_(source))
    return {
        "teraflops": 2e-9 * size**3 / product["milliseconds"],
        "terabytes_per_second": 2e-9 * count / copy["milliseconds"],
    }


def measure(
    device: torch.device, name: str, requests: tuple[int, ...], config: ModelConfig | None = None, text_tokens: int = 48
) -> dict[str, Any]:
    """Args: config: of a smaller model, for a rehearsal; the rooflines stay those of the published one."""
    told = f"a tiny model beside the rooflines of {name}" if config else name
    config, (gpu, figures) = config or published_config(name), card()
    bounds = reached(device)
    peak = figures.teraflops * 1e12
    stages = []

    def add(stage: str, run: Any, roofline: float, per: str = "") -> None:
        figures = timed(run)
        stages.append(
            {
                "stage": stage,
                **figures,
                "roofline": 1e3 * roofline,
                "ratio": figures["milliseconds"] / (1e3 * roofline),
                "note": per,
            }
        )

    with torch.inference_mode():
        with torch.device("meta"):
            vision, connector = VisionEncoder(config.vision, config.pixels), Connector(config)
        encoders = TorchEncoders(randomised(vision, device), randomised(connector, device))
        frames = np.random.default_rng(0).integers(
            0, 256, (config.num_frames, config.pixels.size, config.pixels.size, 3), np.uint8
        )
        index = np.arange(config.num_frames)

        def encode() -> np.ndarray:
            runs = range(0, len(frames), encoders.frames_per_run)
            features = [encoders.encode_frames(frames[n : n + encoders.frames_per_run]).clone() for n in runs]
            return to_host(encoders.connect(torch.cat(features), index))

        add("tower + connector, one video", encode, encoder_work(name) / peak)
        media = encode().reshape(-1, config.language.width)
        with torch.device("meta"):
            decoder = Decoder(config.language)
        positions = len(media) + text_tokens
        runner = TorchRunner(randomised(decoder, device), max(requests), positions + NEW_TOKENS + 32)
        ids = np.concatenate([np.arange(text_tokens), config.language.vocab_size + np.arange(len(media))])
        visible = np.ones(positions, bool)

        def prefill(slot: int = 0) -> None:
            runner.free(slot)
            runner.prefill(slot, ids, media, visible)

        add("prefill of one prompt", prefill, prefill_work(name, positions) / peak, f"{positions} positions")

        def first_token() -> None:
            encode()
            prefill()

        add("first token (frames to scores)", first_token, (encoder_work(name) + prefill_work(name, positions)) / peak)
        for rows in requests:
            for slot in range(rows):
                prefill(slot)
            samplers = [Sampler(ResolvedSampling(NEW_TOKENS, True, 1.0, 0, 1.0, 1.05, 0)) for _ in range(rows)]
            for sampler in samplers:
                sampler.take(1)

            def step(rows: int = rows, samplers: list[Sampler] = samplers) -> None:
                scores = runner.decode(list(range(rows)), [sampler.generated[-1] for sampler in samplers])
                for sampler, token in zip(samplers, scores.best(samplers), strict=True):
                    sampler.take(token)

            add(f"decoding step, {rows} at a time", step, step_seconds(name, rows, positions + 16, figures))
            stages[-1]["tokens_per_second"] = 1e3 * rows / stages[-1]["milliseconds"]
    return {
        "gpu": gpu,
        "checkpoint": told,
        "dtype": "bfloat16",
        "torch": torch.__version__,
        "repeats": REPEATS,
        "peaks": {"teraflops": figures.teraflops, "terabytes_per_second": figures.bandwidth},
        "reached": bounds,
        "stages": stages,
    }


def as_table(results: dict[str, Any]) -> str:
    """Markdown."""
    peaks, bounds = (
        f"{each['teraflops']:.4g} TFLOP/s and {each['terabytes_per_second']:.3g} TB/s"
        for each in (results["peaks"], results["reached"])
    )
    lines = [
        f"{results['checkpoint']}, random weights, {results['dtype']}, {results['gpu']}, torch {results['torch']}; median of {results['repeats']}",
        "",
        f"Rooflines are of the maker's {peaks}; one large product and one large copy reached {bounds}.",
        "",
        "| stage | ms | least to most | roofline ms | ratio | tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["stages"]:
        rate = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
        lines.append(
            f"| {row['stage']} | {row['milliseconds']:.2f} | {row['least']:.2f} to {row['most']:.2f} | {row['roofline']:.2f} | "
            f"{row['ratio']:.2f} | {rate} |"
        )
    return "\n".join(lines) + "\n"
