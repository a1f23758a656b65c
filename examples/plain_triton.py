"""Ask about a video with only tritonclient, as from any language or program that speaks KServe v2.

python examples/plain_triton.py clip.mp4 "What happens?" [localhost:8001]
"""

import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

DEADLINE_SECONDS = 300.0


def strings(name: str, *items: bytes) -> triton.InferInput:
    tensor = triton.InferInput(name, [len(items)], "BYTES")
    tensor.set_data_from_numpy(np.array(items, dtype=np.object_))
    return tensor


video, question, *address = sys.argv[1:]
max_new_tokens = triton.InferInput("max_new_tokens", [1], "INT32")
max_new_tokens.set_data_from_numpy(np.array([64], np.int32))
inputs = [
    strings("question", question.encode()),
    strings("media", Path(video).read_bytes()),
    strings("media_kind", b"video"),
    max_new_tokens,
]

messages: queue.Queue = queue.Queue()
with triton.InferenceServerClient(*address or ["localhost:8001"]) as client:
    client.start_stream(lambda result, error: messages.put((result, error)), stream_timeout=DEADLINE_SECONDS)
    client.async_stream_infer("videollama2", inputs)
    summary = None
    while summary is None:
        result, error = messages.get()
        if error is not None:
            raise SystemExit(str(error))
        if (text := result.as_numpy("text")) is not None:
            print(text[0].decode(), end="", flush=True)
        summary = result.as_numpy("summary")  # only in the last message
    print()
    print(json.loads(summary[0])["usage"], file=sys.stderr)
