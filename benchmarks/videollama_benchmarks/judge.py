"""A judge at any OpenAI-compatible endpoint: one chat completion per question, parsed as the reference parses it."""

import ast
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2 as httpx

from videollama_benchmarks.judge_prompts import JudgePrompt
from videollama_benchmarks.tasks.items import JudgeQuestion
from videollama_core.protocol.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ServerUnreachable,
    StageFailed,
    VideoLlamaError,
)

ATTEMPTS = 4


@dataclass(frozen=True)
class Judgement:
    """A judge's opinion of an answer; `right` is None where it gave no verdict."""

    score: float  # as the judge gave it
    right: bool | None


@dataclass(frozen=True)
class Judge:
    """A client of a judge.

    Args:
        url: base address, such as https://api.openai.com/v1.
        prompts: aspect -> prompt.
        key: sent as a bearer token, unless empty.
        timeout: seconds for one reply.
        retry_seconds: waiting time before the second attempt is twice this; it doubles with each attempt.
    """

    url: str
    model: str
    prompts: Mapping[str, JudgePrompt]
    key: str = ""
    timeout: float = 120.0
    retry_seconds: float = 1.0

    def ask(self, question: JudgeQuestion) -> Judgement:
        """Raises: InvalidRequest if the endpoint refuses; ServerUnreachable, DeadlineExceeded or StageFailed after all attempts."""
        error: VideoLlamaError = StageFailed("the judge was not queried")
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.retry_seconds * 2**attempt)
            values = question.values
            if attempt % 2 and question.reading == "pred":  # as the reference shortens answers that are too long
                values = {**values, "prediction": values["prediction"][:50]}
            try:
                return read_reply(self._complete(question.aspect, values), question.reading)
            except (ServerUnreachable, StageFailed, DeadlineExceeded) as failure:
                error = failure
        raise error

    def _complete(self, aspect: str, values: Mapping[str, str]) -> str:
        body = {
            "model": self.model,
            "messages": self.prompts[aspect].messages(values),
            # The reference's settings, with which results are not exactly reproducible.
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 800,
        }
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            reply = httpx.post(address, json=body, headers=headers, timeout=self.timeout, verify=_certificates())
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"the judge at {address} did not answer in {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"the judge at {address}: {error}") from error
        if reply.status_code in (408, 429) or reply.status_code >= 500:
            raise StageFailed(f"the judge at {address} answered {reply.status_code}: {reply.text[:200]}")
        if reply.status_code != 200:
            raise InvalidRequest(f"the judge at {address} refused with {reply.status_code}: {reply.text[:200]}")
        try:
            return reply.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise StageFailed(f"the judge at {address} did not send a chat completion: {reply.text[:200]}") from error


@cache
def _certificates() -> ssl.SSLContext:
    """The system's certificates, read once: that takes 0.1 s of processor time, more than a local request."""
    return httpx.create_ssl_context()


def read_reply(text: str, reading: str) -> Judgement:
    """Parse a reply as the reference does: the whole reply is one Python literal, as a JSON object of numbers and strings is.

    pred: right or wrong by a yes or no anywhere in `pred`; with neither, the item is left out of the accuracy. A score that is
        not a number counts as 0.
    binary_pred: right if it is exactly yes, otherwise wrong; the score as above.
    score, first: the number under "score", or the first value, whatever its key.
    Raises: StageFailed if it cannot be parsed; the judge is then queried again.
    """
    try:
        content = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _unreadable(text, reading) from error
    if reading in ("pred", "binary_pred"):
        fields = content if isinstance(content, dict) else {}
        score, verdict = _number(fields.get("score")), fields.get(reading)
        if reading == "binary_pred":
            return Judgement(score or 0.0, score is not None and verdict == "yes")
        word = verdict.lower() if isinstance(verdict, str) and score is not None else ""
        return Judgement(score or 0.0, True if "yes" in word else False if "no" in word else None)
    values = list(content.values()) if isinstance(content, dict) else []
    score = _number(values[0] if reading == "first" and values else content["score"] if _has_score(content) else None)
    if score is None:
        raise _unreadable(text, reading)
    return Judgement(score, None)


def _has_score(content: Any) -> bool:
    return isinstance(content, dict) and "score" in content


def _number(value: Any) -> float | None:
    """A number, or a string that holds an integer; None otherwise."""
    try:
        int(value)
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return None


def _unreadable(text: str, reading: str) -> StageFailed:
    keys = {"pred": "pred and score", "binary_pred": "binary_pred and score"}.get(reading, "score")
    return StageFailed(f"the judge replied {text[:200]!r}; expected a JSON object with {keys} and nothing else")
