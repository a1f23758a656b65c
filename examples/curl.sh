#!/bin/sh
# Ask about a video with only curl; the answer is streamed as server-sent events.
# sh examples/curl.sh clip.mp4 [http://localhost:8080/v1]
set -eu
printf '{"model": "videollama2", "max_tokens": 64, "stream": true, "messages": [{"role": "user", "content": [
    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,%s"}},
    {"type": "text", "text": "What happens?"}]}]}' "$(base64 -w 0 "$1")" |
    curl --silent --show-error --fail-with-body --no-buffer "${2:-http://localhost:8080/v1}/chat/completions" \
        --header "content-type: application/json" --data-binary @-
