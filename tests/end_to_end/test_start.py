"""A server that cannot start says why in a sentence and ends with 2; one that is told to stop finishes its streams."""

from __future__ import annotations

import json
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.serve.process import finished, server_process

import dsv4

DEMO = Path(dsv4.__file__).parent / "demo"


def truncate(directory: Path) -> None:
    shard = min(directory.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)


def lie_about_a_shape(directory: Path) -> None:
    """Halves one dimension of a tensor and doubles another: the bytes fit, the model does not."""
    shard = min(directory.glob("*.safetensors"))
    raw = shard.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    name = next(key for key, value in sorted(header.items()) if len(value.get("shape", ())) == 2)
    rows, columns = header[name]["shape"]
    header[name]["shape"] = [rows * 2, columns // 2]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    shard.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def drop_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def another_model(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "safetensors"),
        (lie_about_a_shape, "shape"),
        (drop_config, "config.json"),
        (another_model, "llama"),
        (shutil.rmtree, "model"),
    ],
)
def test_a_damaged_model_directory_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(DEMO, directory)
    damage(directory)
    status, stderr = finished("dsv4.serve", str(directory), "--port", "0")
    assert status == 2, stderr
    assert "Traceback" not in stderr
    assert words.lower() in stderr.lower()


def test_sigterm_lets_a_running_stream_finish() -> None:
    with (
        server_process("dsv4.serve", "demo", "--port", "0", OMP_NUM_THREADS="1") as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        body = {"prompt": "Once", "max_tokens": 40, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            server.signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.exit_status() == 0


def test_server_settings_hold_where_a_request_says_nothing() -> None:
    settings = (
        "--default-thinking",
        "off",
        "--api-key",
        "sk-demo",
        "--served-model-name",
        "tiny",
        "--max-model-len",
        "512",
    )
    with (
        server_process("dsv4.serve", "demo", "--port", "0", *settings, OMP_NUM_THREADS="1") as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        client.headers["authorization"] = "Bearer sk-demo"
        message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
        assert message["content"]
        assert "reasoning_content" not in message
        thought = client.post("/v1/chat/completions", json={**body, "reasoning_effort": "high"}).json()
        assert thought["choices"][0]["message"]["reasoning_content"]
        too_long = client.post("/v1/completions", json={"prompt": [5] * 512, "max_tokens": 1}).json()["error"]
        assert too_long["code"] == "context_length_exceeded"
        assert too_long["message"].count("512") == 2
