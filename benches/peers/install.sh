#!/bin/bash
# Makes a throw-away environment with the peers' Python files: benches/peers/install.sh FOLDER [PYTHON3.12]
#
# SGLang's Rust tree is a cp312 binary linked against torch 2.14. vLLM and SGLang are installed without their dependencies
# (tens of GB of kernels that a scheduler on a CPU never loads); the second list is what their imports need. About 7 GB.
set -euo pipefail

folder=${1:?usage: benches/peers/install.sh FOLDER [PYTHON3.12]}
python=${2:-python3.12}

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and "SGLang 0.5.23 ships its Rust tree for CPython 3.12")'
"$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }

pip torch==2.14.1
pip --no-deps torchvision==0.29.0 vllm==0.33.0 sglang==0.5.23
pip transformers==5.19.0 tokenizers==0.23.2 compressed-tensors==0.18.0 xgrammar==0.2.7 apache-tvm-ffi==0.1.11 numba==0.65.1 \
    aiohttp blake3 cachetools cbor2 cloudpickle dill einops fastapi filelock gguf ipython jsonschema llguidance msgspec \
    ninja numpy openai openai-harmony orjson packaging partial_json_parser pillow prometheus_client protobuf psutil \
    py-cpuinfo pybase64 pydantic python-json-logger python-multipart pyyaml pyzmq regex requests sentencepiece \
    setproctitle tiktoken tqdm typing_extensions uvloop watchfiles xxhash

echo "now: python -m benches.peers --python $folder/bin/python"
