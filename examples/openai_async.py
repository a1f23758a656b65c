"""Ask the same question about several videos at once with OpenAI's asynchronous SDK; prints one JSON line per answer.

pip install openai
python examples/openai_async.py "What happens?" a.mp4 b.mp4 ... [--url http://localhost:8080/v1]
"""

import argparse
import asyncio
import base64
import json
from pathlib import Path

from openai import AsyncOpenAI, OpenAIError


async def ask(client: AsyncOpenAI, question: str, video: Path) -> None:
    encoded = base64.b64encode(video.read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}},
        {"type": "text", "text": question},
    ]
    line = {"video": video.name}
    try:
        answer = await client.chat.completions.create(
            model="videollama2", messages=[{"role": "user", "content": content}], max_tokens=64
        )
        line["answer"] = answer.choices[0].message.content
    except OpenAIError as error:  # an error about one video must not stop the others
        line["error"] = str(error)
    print(json.dumps(line), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--url", default="http://localhost:8080/v1")
    args = parser.parse_args()
    async with AsyncOpenAI(base_url=args.url, api_key="none") as client:
        await asyncio.gather(*(ask(client, args.question, video) for video in args.videos))


asyncio.run(main())
