"""Ask several questions about one video, each with the earlier ones as context.

python examples/conversation.py clip.mp4 [localhost:8001] < questions.txt
"""

import sys

from videollama_client import Client

video, *address = sys.argv[1:]
messages: list[dict[str, str]] = []
with Client(*address) as client:
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.strip()})
        answer = client.ask(messages, video=video, max_new_tokens=64)
        messages.append({"role": "assistant", "content": answer.text})
        print(answer.text)
