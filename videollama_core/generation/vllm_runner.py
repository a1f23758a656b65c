"""vLLM instead of our decoder: our requests and answers, with its engine in between.

Prompts are passed as embeddings that include the media tokens, so vLLM runs the plain language model in `llm/`.
Written against vLLM 0.32. Greedy answers equal our own decoder's; sampled ones use another stream of random numbers.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import torch

from videollama_core.checkpoint.shards import Shards
from videollama_core.contrast import NO_CONTRAST
from videollama_core.engines.bundle import Bundle
from videollama_core.generation.request import GenerationRequest, Running
from videollama_core.generation.steps import Advance, Counters, Failure, Outcome
from videollama_core.generation.vllm_arguments import check_known, from_environment
from videollama_core.protocol.errors import InvalidRequest

EMBEDDING = "model.embed_tokens.weight"
_PENALTY = "penalty_of_generated"
_BLOCK = 128  # positions, the largest page of vLLM's caches
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the stage's process and dies with it
    # The newer runner, the default where Triton (the compiler) finds a GPU, rejects logits processors of this interface.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def _distribution() -> str:
    """Name of the installed distribution: vLLM has one per kind of hardware."""
    return metadata.packages_distributions()["vllm"][0]


@cache
def _penalty() -> Any:
    """The logits processor for our repetition penalty, defined here because importing its base class imports vLLM.

    Our penalty counts generated tokens only. vLLM's own also counts the prompt, whose ids it lacks for embeddings.
    """
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class Penalty(AdapterLogitsProcessor):  # type: ignore[misc, unused-ignore]
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Any:
            penalty = (params.extra_args or {}).get(_PENALTY, 1.0)
            # With three parameters, vLLM would pass the prompt's ids as well.
            return None if penalty == 1.0 else lambda generated, scores: penalise(generated, scores, penalty)

    Penalty.__qualname__ = "Penalty"
    return Penalty


def __getattr__(name: str) -> Any:
    """`Penalty` by name: processes that share the layers unpickle the class by it."""
    if name == "Penalty":
        return _penalty()
    raise AttributeError(name)


def penalise(generated: list[int], scores: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide the scores [vocab] of generated ids by the penalty, or multiply them if they are negative; in place."""
    ids = torch.tensor(sorted(set(generated)), dtype=torch.int64, device=scores.device)
    before = scores[ids]
    scores[ids] = torch.where(before > 0, before / penalty, before * penalty)
    return scores


class VllmRunner:
    """vLLM's engine on numbered slots, each holding one request."""

    def __init__(self, bundle: Bundle, num_slots: int) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import EngineArgs  # takes seconds, and reads the environment
        from vllm.v1.engine.llm_engine import LLMEngine

        language = bundle.config.language
        self.num_slots, self.max_length, self.vocab_size = num_slots, bundle.max_seq_len, language.vocab_size
        self._dtype = getattr(torch, bundle.dtype)
        table = Shards.open(bundle.language_folder).read(EMBEDDING)
        self._table = table.to(self._dtype)
        self._slots: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        arguments = from_environment()
        check_known(arguments, [field.name for field in fields(EngineArgs)], metadata.version(_distribution()))
        # Per GPU: tensor parallelism splits the heads of each layer, pipeline parallelism the layers.
        heads = -(-language.kv_heads // int(arguments.get("tensor_parallel_size", 1)))
        layers = -(-language.layers // int(arguments.get("pipeline_parallel_size", 1)))
        per_position = 2 * layers * heads * language.head_dim * self._dtype.itemsize
        defaults = {
            # Exactly what the slots need: vLLM's default, a share of the device, would leave no memory for the encoders.
            "kv_cache_memory_bytes": num_slots * (self.max_length + _BLOCK) * per_position,
            "gpu_memory_utilization": 0.1,
            "enforce_eager": not torch.cuda.is_available(),
        }
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                **(defaults | arguments),
                model=str(bundle.language_folder),
                dtype=bundle.dtype,
                skip_tokenizer_init=True,
                enable_prompt_embeds=True,
                enable_prefix_caching=False,  # it compares token ids, and our prompts are embeddings
                max_model_len=self.max_length,
                max_num_seqs=num_slots,
                logits_processors=[_penalty()],
                async_scheduling=False,  # the penalty needs the last token before the next step
                disable_log_stats=True,
                seed=0,
            )
        )

    def begin(self, slot: int, request: GenerationRequest) -> None:
        """Pass a request to the engine, which prefills its prompt in the next steps."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        settings = SamplingParams(
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_k=0 if sampling.greedy else sampling.top_k,
            top_p=1.0 if sampling.greedy else sampling.top_p,
            extra_args={_PENALTY: sampling.repetition_penalty},
            seed=sampling.seed,
            max_tokens=min(sampling.max_new_tokens, self.max_length - len(request.input_ids)),
            ignore_eos=True,  # the scheduler ends a request at any of its end words
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = f"{slot}-{request.request_id}"
        self._slots[name], self._ids[slot] = slot, name
        self._engine.add_request(name, {"prompt_embeds": self._embed(request.input_ids, request.media)}, settings)

    def _embed(self, ids: np.ndarray, media: np.ndarray | None) -> torch.Tensor:
        """Ids int64 [S] -> embeddings [S, D], with the media rows at the media positions."""
        is_media = ids >= self.vocab_size
        embeds = self._table[torch.from_numpy(np.where(is_media, 0, ids))]
        if media is not None:
            rows = media[ids[is_media] - self.vocab_size]
            embeds[torch.from_numpy(is_media)] = torch.from_numpy(rows).to(self._dtype)
        return embeds

    def step(self) -> list[tuple[int, int]]:
        """One step of the engine. Returns: (slot, token) of every new token."""
        tokens = []
        for output in self._engine.step():
            slot = self._slots.get(output.request_id)
            if slot is not None:
                tokens += [(slot, token) for token in output.outputs[0].token_ids]
        return tokens

    def free(self, slot: int) -> None:
        """Forget a slot's request, ended or not."""
        name = self._ids.pop(slot, None)
        if name is not None:
            del self._slots[name]
            self._engine.abort_request([name])


class VllmSteps:
    """Steps of vLLM's engine, which schedules prefill and decoding itself."""

    def __init__(self, runner: VllmRunner) -> None:
        self.runner = runner
        self.num_slots, self.max_length, self.vocab_size = runner.num_slots, runner.max_length, runner.vocab_size

    def check(self, request: GenerationRequest) -> None:
        if request.sampling.contrasts:
            raise InvalidRequest(NO_CONTRAST)
        if request.return_logits:
            raise InvalidRequest(
                "vLLM does not return scores; use a server without --llm vllm for return_generation_logits"
            )
        if request.pad_id is not None and (request.input_ids == request.pad_id).any():
            raise InvalidRequest("the text contains the padding token, which must be masked, and vLLM cannot mask it")

    def free(self, slot: int) -> None:
        self.runner.free(slot)

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """Pass every new prompt to the engine."""
        for entry in running:
            if entry.prefilled:
                continue
            try:
                self.runner.begin(entry.slot, entry.request)
            except Exception as error:
                yield Failure(entry, error)
            else:
                entry.prefilled = len(entry.request.input_ids)

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        if not running:
            return
        try:
            tokens = self.runner.step()
        except Exception as error:
            for entry in running:
                yield Failure(entry, error)
            return
        if tokens:
            counters.count_step(len(tokens))
        by_slot = {entry.slot: entry for entry in running}
        for slot, token in tokens:
            if slot in by_slot:
                yield Advance(by_slot[slot], token=token)
