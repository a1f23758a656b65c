"""Prompts for the judge: our own wording, or those of a file (such as the published ones).

A prompt is a system and a user message. In both, the placeholders {question}, {answer} (the correct one) and {prediction} are
replaced by an item's texts; consistency of Video-ChatGPT has {question_1}, {question_2}, {answer}, {prediction_1} and
{prediction_2}. Other braces are kept.
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
    """A prompt for a judge, with placeholders in braces."""

    system: str
    user: str

    def messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Replace every placeholder that has a value, in one pass, so that braces in a value are kept."""

        def fill(text: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)

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
    """Read the prompts of one benchmark from a file {benchmark: {aspect: {"system": text, "user": text}}}.

    Raises: BadSample if an aspect is missing or a prompt does not contain the prediction.
    """
    content = need(read_json_file(path), task, path)
    prompts = {}
    for aspect in aspects:
        entry: Any = need(content, aspect, path)
        prompt = JudgePrompt(need(entry, "system", path), need(entry, "user", path))
        if not isinstance(prompt.system, str) or not isinstance(prompt.user, str):
            raise BadSample(f"{path}: {task}/{aspect} is {json.dumps(entry)[:200]}; expected two strings")
        if "{prediction" not in prompt.user:
            raise BadSample(f"{path}: the user message of {task}/{aspect} lacks {{prediction}}")
        prompts[aspect] = prompt
    return prompts
