"""Ask about a video with langchain-openai, with a system message, and print the answer while it is generated.

pip install langchain-openai
python examples/langchain_chat.py clip.mp4 "What happens?" [http://localhost:8080/v1]
"""

import base64
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

video, question, *address = sys.argv[1:]
encoded = base64.b64encode(Path(video).read_bytes()).decode()
model = ChatOpenAI(
    model="videollama2", base_url=(address or ["http://localhost:8080/v1"])[0], api_key="none", max_tokens=64
)
messages = [
    SystemMessage("Answer in one short sentence."),
    HumanMessage(
        [
            {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}},
            {"type": "text", "text": question},
        ]
    ),
]
for chunk in model.stream(messages):
    print(chunk.text, end="", flush=True)
print()
