"""What the judge is told: our own wording, or the prompts of a file (such as the published ones).

A prompt is a system and a user message. In both, {question}, {answer} (the correct one) and {prediction} stand for an
item's; consistency of Video-ChatGPT has {question_1}, {question_2}, {answer}, {prediction_1} and {prediction_2}. Other
braces are left as they are.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_benchmarks.tasks.items import need, read_json_file
from videollama_core.protocol.errors import BadSample

OWN_WORDING = "our own wording: scores do not compare with published ones"


@dataclass(frozen=True)
class JudgePrompt:
    system: str
    user: str

    def messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Every placeholder that has a value is replaced, in one pass: braces in a value stay."""

        def fill(text: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)

        return [
            {"role": "system", "content": fill(self.system)},
            {"role": "user", "content": fill(self.user)},
        ]


def _own(task: str, verdict: str = "", items: str = "Correct answer: {answer}") -> JudgePrompt:
    fields = f'"{verdict}": "yes" or "no", ' if verdict else ""
    wanted = f'{{{fields}"score": a whole number from 0 (worst) to 5 (best)}}'
    shown = items if "{prediction_1}" in items else f"Question: {{question}}\n{items}\nPredicted answer: {{prediction}}"
    return JudgePrompt(f"{task} Reply with one JSON object and nothing else: {wanted}.", shown)


_COMPARE = (
    "You compare the answer of a question answering system with the correct one. Synonyms and paraphrases are right; "
    "what matters is the meaning."
)
_TWICE = (
    "Question 1: {question_1}\nQuestion 2: {question_2}\nCorrect answer to both: {answer}\n"
    "Predicted answer 1: {prediction_1}\nPredicted answer 2: {prediction_2}"
)


def _rate(what: str) -> str:
    return f"You rate the answer of a video question answering system: {what}."


def _describe(what: str, medium: str = "a video") -> str:
    return f"You rate a description of {medium}: {what}."


_INVENTS = "whether it agrees with the reference and invents nothing"
_COVERS = "how completely it covers what the reference mentions"
# Benchmark -> aspect -> prompt.
OWN: dict[str, dict[str, JudgePrompt]] = {
    **{name: {"answer": _own(_COMPARE, "pred")} for name in ("activitynet-qa", "msvd-qa")},
    **{name: {"answer": _own(_COMPARE, "binary_pred")} for name in ("avsd", "avssd")},
    "video-chatgpt": {
        "correctness": _own(_rate("whether its facts agree with the correct answer and nothing is made up")),
        "detail": _own(_rate("whether it is complete and specific, as far as the correct answer goes")),
        "context": _own(_rate("whether it fits the overall theme and context of the video")),
        "temporal": _own(_rate("whether the order and times of events agree with the correct answer")),
        "consistency": _own(
            _rate(
                "whether both answers to one question in two wordings agree with the correct one and with each other"
            ),
            items=_TWICE,
        ),
    },
    "msvc": {
        "correctness": _own(_describe(_INVENTS), items="Reference descriptions: {answer}"),
        "detailedness": _own(_describe(_COVERS), items="Reference descriptions: {answer}"),
    },
    "clotho": {
        "correctness": _own(_describe(_INVENTS, "a sound"), items="Reference description: {answer}"),
        "detailedness": _own(_describe(_COVERS, "a sound"), items="Reference description: {answer}"),
    },
}


def read_prompts(path: Path, task: str, aspects: Iterable[str]) -> dict[str, JudgePrompt]:
    """{benchmark: {aspect: {"system": text, "user": text}}} -> the prompts of this benchmark.

    Raises: BadSample if an aspect is missing or a prompt shows the judge no prediction.
    """
    content = need(read_json_file(path), task, path)
    prompts = {}
    for aspect in aspects:
        prompt: Any = need(content, aspect, path)
        found = JudgePrompt(need(prompt, "system", path), need(prompt, "user", path))
        if not isinstance(found.system, str) or not isinstance(found.user, str):
            raise BadSample(f"{path}: {task}/{aspect} holds {json.dumps(prompt)[:200]}; two texts were wanted")
        if "{prediction" not in found.user:
            raise BadSample(f"{path}: {task}/{aspect} shows the judge no {{prediction}}")
        prompts[aspect] = found
    return prompts
