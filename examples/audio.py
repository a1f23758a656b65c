"""Ask about an audio file, or about a video together with its audio track. Needs an audio-visual checkpoint.

python examples/audio.py sound.wav "What is this sound?" [localhost:8001]
python examples/audio.py clip.mp4 "What happens?" [localhost:8001]
"""

import sys

from videollama_client import Client

media, question, *address = sys.argv[1:]
with Client(*address) as client:
    if media.endswith((".wav", ".flac", ".mp3")):
        answer = client.ask(question, audio=media, max_new_tokens=64)
    else:
        answer = client.ask(question, video=media, with_audio=True, max_new_tokens=64)
    print(answer.text)
