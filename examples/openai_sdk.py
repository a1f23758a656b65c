"""Ask about a video through the gateway with OpenAI's SDK, and print the answer while it is generated.

pip install openai
python examples/openai_sdk.py clip.mp4 "What happens?" [http://localhost:8080/v1]
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

video, question, *address = sys.argv[1:]
encoded = base64.b64encode(Path(video).read_bytes()).decode()
content = [
    {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}},
    {"type": "text", "text": question},
]
with OpenAI(base_url=(address or ["http://localhost:8080/v1"])[0], api_key="none") as client:
    stream = client.chat.completions.create(
        model="videollama2", messages=[{"role": "user", "content": content}], max_tokens=64, stream=True
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
