"""Ask the same question about every video of a folder, several concurrently; prints one JSON object per line.

python examples/batch_folder.py clips "What happens?" [localhost:8001]
"""

import asyncio
import json
import sys
from pathlib import Path

from videollama_client import AsyncClient, VideoLlamaError

CONCURRENT_REQUESTS = 8


async def main(folder: str, question: str, *address: str) -> None:
    limit = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def ask(client: AsyncClient, video: Path) -> dict[str, str]:
        async with limit:
            try:
                answer = await client.ask(question, video=video, max_new_tokens=64)
                return {"video": video.name, "answer": answer.text}
            except VideoLlamaError as error:  # a broken file must not end the batch
                return {"video": video.name, "error": str(error)}

    async with AsyncClient(*address) as client:
        for line in await asyncio.gather(*(ask(client, video) for video in sorted(Path(folder).glob("*.mp4")))):
            print(json.dumps(line))


asyncio.run(main(*sys.argv[1:]))
