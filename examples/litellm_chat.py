"""Ask about a video with LiteLLM, whose proxy also works in front of the gateway.

pip install litellm
python examples/litellm_chat.py clip.mp4 "What happens?" [http://localhost:8080/v1]
"""

import base64
import sys
from pathlib import Path

import litellm

video, question, *address = sys.argv[1:]
encoded = base64.b64encode(Path(video).read_bytes()).decode()
answer = litellm.completion(
    model="openai/videollama2",
    api_base=(address or ["http://localhost:8080/v1"])[0],
    api_key="none",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}},
                {"type": "text", "text": question},
            ],
        }
    ],
    max_tokens=64,
)
print(answer.choices[0].message.content)
