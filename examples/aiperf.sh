#!/bin/sh
# Measure performance with NVIDIA's AIPerf: 24 questions about the videos of a folder, four concurrent; tables, CSV and JSON in OUT.
# pip install aiperf
# sh examples/aiperf.sh VIDEOS BUNDLE OUT [localhost:8080]
set -eu
videos=$(realpath "$1") bundle=$2 out=$3 address=${4:-localhost:8080}
mkdir -p "$out"
for video in "$videos"/*.mp4; do
    printf '{"text": "What happens?", "video": "%s"}\n' "$video"
done > "$out/questions.jsonl"
aiperf profile --model videollama2 --url "$address" --endpoint-type chat --streaming --ui none \
    --tokenizer "$bundle/llm" --use-server-token-count --input-file "$out/questions.jsonl" \
    --custom-dataset-type single-turn --concurrency 4 --request-count 24 --extra-inputs max_tokens:16 \
    --artifact-dir "$out"
