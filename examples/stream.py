"""Print an answer while it is being generated.

python examples/stream.py clip.mp4 "What happens?" [localhost:8001]
"""

import sys

from videollama_client import Client

video, question, *address = sys.argv[1:]
with Client(*address) as client:
    stream = client.stream(question, video=video, max_new_tokens=64)
    for piece in stream:
        print(piece, end="", flush=True)
    print()
    print(f"{stream.answer.finish_reason} after {stream.answer.seconds['total']:.2f} s", file=sys.stderr)
