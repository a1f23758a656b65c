"""Two transports to the same server, timed in the same way: our client over gRPC, and plain HTTP through the gateway."""

import base64
import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from videollama_client import Client, QuestionOptions
from videollama_core.protocol.errors import StageFailed


@dataclass(frozen=True)
class TimedAnswer:
    """One streamed answer; times in seconds since the call, which includes building the request."""

    text: str
    first: float  # until the first piece of text
    last: float  # until the last one

    def per_token(self, tokens: int) -> float:
        """Mean seconds per token after the first."""
        return (self.last - self.first) / (tokens - 1)


Transport = Callable[[str, bytes | None, int], TimedAnswer]  # question, video, tokens of the answer


def over_grpc(client: Client) -> Transport:
    """Ask over gRPC, with our client."""

    def ask(question: str, video: bytes | None, tokens: int) -> TimedAnswer:
        began = time.perf_counter()
        options: QuestionOptions = {"max_new_tokens": tokens, "temperature": 0}
        if video is not None:
            options["video"] = video
        return _timed(began, client.stream(question, **options))

    return ask


@contextmanager
def through_gateway(url: str) -> Iterator[Transport]:
    """Ask through the gateway, over one persistent connection.

    Args:
        url: of the OpenAI API, http://HOST:PORT/v1.
    """
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    connection.connect()

    def ask(question: str, video: bytes | None, tokens: int) -> TimedAnswer:
        began = time.perf_counter()
        content: list[object] = [{"type": "text", "text": question}]
        if video is not None:
            data = f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
            content.insert(0, {"type": "video_url", "video_url": {"url": data}})
        body = {
            "model": "videollama2",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        connection.request("POST", f"{where.path}/chat/completions", json.dumps(body))
        return _timed(began, _pieces(connection.getresponse()))

    try:
        yield ask
    finally:
        connection.close()


def _timed(began: float, stream: Iterable[str]) -> TimedAnswer:
    pieces, times = [], []
    for piece in stream:
        pieces.append(piece)
        times.append(time.perf_counter() - began)
    return TimedAnswer("".join(pieces), times[0], times[-1])


def _pieces(response: http.client.HTTPResponse) -> Iterable[str]:
    """Text of an event stream, read to its end, so that the connection can be reused. Raises: StageFailed for an error."""
    if response.status != 200:
        raise StageFailed(f"the gateway answered {response.status}: {response.read(1000).decode('utf-8', 'replace')}")
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise StageFailed(f"the gateway ended the stream: {event['error']['message']}")
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                yield piece
