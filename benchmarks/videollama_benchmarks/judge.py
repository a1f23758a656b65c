"""A judge behind any OpenAI-compatible endpoint: one chat completion per question, its verdict read from JSON."""

import json
import re
import time
from dataclasses import dataclass

import httpx2 as httpx

from videollama_benchmarks.items import JudgeQuestion
from videollama_core.protocol.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ServerUnreachable,
    StageFailed,
    VideoLlamaError,
)

ATTEMPTS = 4
_FORMAT = 'Reply with one JSON object and nothing else: {{{fields}"score": a whole number from 0 (worst) to 5 (best)}}.'


@dataclass(frozen=True)
class Judgement:
    score: int
    right: bool | None


@dataclass(frozen=True)
class Judge:
    """
    Args:
        url: base address, such as https://api.openai.com/v1.
        key: sent as a bearer token; empty for an endpoint without keys.
    """

    url: str
    model: str
    key: str = ""
    timeout: float = 120.0
    retry_seconds: float = 1.0

    def ask(self, question: JudgeQuestion) -> Judgement:
        """Raises: InvalidRequest when the endpoint refuses, ServerUnreachable or StageFailed after some attempts."""
        error: VideoLlamaError = StageFailed("the judge was not asked")
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.retry_seconds * 2**attempt)
            try:
                return read_judgement(self._complete(question), question.with_verdict)
            except (ServerUnreachable, StageFailed, DeadlineExceeded) as failure:
                error = failure
        raise error

    def _complete(self, question: JudgeQuestion) -> str:
        fields = '"pred": "yes" or "no", ' if question.with_verdict else ""
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": f"{question.instruction} {_FORMAT.format(fields=fields)}"},
                {"role": "user", "content": question.content},
            ],
            # The reference's settings: results are not exactly reproducible.
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 800,
        }
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        address = f"{self.url.rstrip('/')}/chat/completions"
        try:
            reply = httpx.post(address, json=body, headers=headers, timeout=self.timeout)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"the judge at {address} did not answer in {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"the judge at {address}: {error}") from error
        if reply.status_code in (408, 429) or reply.status_code >= 500:
            raise StageFailed(f"the judge at {address} answered {reply.status_code}: {reply.text[:200]}")
        if reply.status_code != 200:
            raise InvalidRequest(f"the judge at {address} refuses with {reply.status_code}: {reply.text[:200]}")
        try:
            return reply.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise StageFailed(f"the judge at {address} sent no chat completion: {reply.text[:200]}") from error


def read_judgement(text: str, with_verdict: bool) -> Judgement:
    """Raises: StageFailed if the text holds no such object."""
    found = re.search(r"\{.*?\}", text, re.DOTALL)
    try:
        content = json.loads(found[0].replace("'", '"')) if found else {}
        score = int(content["score"])
        verdict = str(content["pred"]).strip().lower() if with_verdict else ""
    except (ValueError, KeyError, TypeError) as error:
        raise StageFailed(f"the judge said {text[:200]!r}; a JSON object with score was wanted") from error
    if not 0 <= score <= 5 or (with_verdict and verdict not in ("yes", "no")):
        raise StageFailed(f"the judge said {text[:200]!r}; a score from 0 to 5 and yes or no were wanted")
    return Judgement(score, verdict == "yes" if with_verdict else None)
