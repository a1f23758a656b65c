#!/bin/sh
# Install this source tree into the pinned GPU container's own Python: install_in_container.sh SOURCE [PYTHON]
# Its torch, numpy, tensorrt and tensorrt_llm depend on each other's versions and must not change: dependencies are not resolved.
set -eu
source=$1
python=${2:-/opt/venv-tritonserver/bin/python}
"$python" -m pip freeze --exclude-editable > /tmp/container.txt
"$python" -m pip install --no-cache-dir --quiet --disable-pip-version-check --no-deps "$source"
# Packages that the container may lack, constrained so that nothing already installed changes.
"$python" -m pip install --no-cache-dir --quiet --disable-pip-version-check -c /tmp/container.txt \
    "av>=14,<19" "click>=8.1" "jinja2>=3.1" "onnx>=1.17" "onnx-ir>=0.1.9" "onnxscript>=0.5" "pillow>=10.4" "safetensors>=0.5" \
    "sentencepiece>=0.2" "soundfile>=0.13" "tokenizers>=0.21" "tritonclient[grpc]>=2.51" "uvloop>=0.21"
"$python" -m videollama_client --version
