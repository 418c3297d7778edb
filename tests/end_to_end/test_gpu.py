"""A server on this machine's GPU, with small layers of every kind and weights drawn from a seed.

The same requests, one after the other and all together, with CUDA graphs and without: every answer is the same.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from tests.serve.process import server_process

from dsv4.config.directory import DEMO

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPE = {
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "compress_ratios": [0, 4, 128, 4],
    "num_attention_heads": 64,
    "index_n_heads": 64,
    "o_groups": 8,
    "index_topk": 512,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 0,
}
PROMPTS = [list(range(5, 5 + length)) for length in (1, 7, 130, 64, 1000, 3, 300, 2100, 12, 129, 511, 40)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that can be served with drawn weights."""
    config = json.loads((DEMO / "config.json").read_text()) | SHAPE
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


def ask(client: httpx.Client, number: int) -> list[str]:
    body = {
        "prompt": PROMPTS[number],
        "max_tokens": 48,
        "temperature": 0 if number % 2 else 1,
        "seed": number,
        "ignore_eos": True,
        "logprobs": 1,
    }
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    tokens: list[str] = response.json()["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == 48
    return tokens


@pytest.mark.timeout(400)
def test_answers_do_not_depend_on_graphs_or_on_company(model: Path) -> None:
    said = {}
    for flag in ("--no-cuda-graphs", "--cuda-graphs"):
        flags = ("--load-format", "dummy", "--device", "cuda", flag, "--max-num-seqs", "16", "--max-model-len", "4096")
        with (
            server_process("dsv4.serve", str(model), "--port", "0", *flags, "--seed", "3") as process,
            httpx.Client(base_url=process.url, timeout=300, trust_env=False) as client,
        ):
            said[flag, "alone"] = [ask(client, number) for number in range(len(PROMPTS))]
            with ThreadPoolExecutor(len(PROMPTS)) as pool:
                said[flag, "together"] = list(pool.map(lambda n, c=client: ask(c, n), range(len(PROMPTS))))
    first, *others = said.items()
    for name, answers in others:
        assert answers == first[1], f"{name} differs from {first[0]}"
