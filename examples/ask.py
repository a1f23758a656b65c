"""Ask one question about a video and print the answer.

python examples/ask.py clip.mp4 "What happens?" [localhost:8001]
"""

import sys

from videollama_client import Client

video, question, *address = sys.argv[1:]
with Client(*address) as client:
    answer = client.ask(question, video=video, max_new_tokens=64)
    print(answer.text)
    print(answer.usage, answer.seconds, file=sys.stderr)
