"""The hub's real clients, in subprocesses with an empty cache, load from the stand-in in hub.py and then offline.

Run as a script, this file is that subprocess: it prints what it loaded, and with `errors` also what was refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Hub

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PREFERENCES = "acme/preferences"
CONFIGURED = "acme/configured"
TEMPLATE = "{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}"


def load() -> dict[str, Any]:
    from datasets import load_dataset
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model, report = AutoModelForCausalLM.from_pretrained(MODEL, output_loading_info=True)
    splits = load_dataset(PREFERENCES)
    return {
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False),
        "ids": tokenizer("hi")["input_ids"],
        "config": [AutoConfig.from_pretrained(MODEL).hidden_size, type(model).__name__],
        "norm": model.model.norm.weight.tolist(),
        "keys": sorted(report["missing_keys"] | report["unexpected_keys"]),
        "splits": {name: split.num_rows for name, split in splits.items()},
        "split": load_dataset(PREFERENCES, split="test_prefs")[0],
        "configured": {name: load_dataset(CONFIGURED, name, split="train")["text"][:] for name in ("en", "fr")},
        "snapshot": sorted(path.name for path in Path(snapshot_download(MODEL)).iterdir()),
    }


def refused(call: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """The error a call raises: its class and its first cause's."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 which one is what the test compares
        call(*args, **options)
    return [type(caught.value).__name__, type(caught.value.__cause__).__name__]


def load_online_only() -> dict[str, Any]:
    from datasets import load_dataset
    from huggingface_hub import HfApi, hf_hub_download
    from transformers import AutoTokenizer

    api = HfApi()
    return {
        "streamed": next(iter(load_dataset(PREFERENCES, split="train_prefs", streaming=True))),
        "files": api.list_repo_files(PREFERENCES, repo_type="dataset"),
        "top": [entry.path for entry in api.list_repo_tree(PREFERENCES, repo_type="dataset")],
        "paths": [entry.path for entry in api.get_paths_info(MODEL, ["config.json", "absent.json"])],
        "auth": api.auth_check(MODEL),
        "gated info": api.model_info("acme/gated").gated,
        "gated": refused(hf_hub_download, "acme/gated", "config.json")[0],
        "gated tokenizer": refused(AutoTokenizer.from_pretrained, "acme/gated"),
        "gated dataset": refused(load_dataset, "acme/gated")[0],
        "gated auth": refused(api.auth_check, "acme/gated")[0],
        "missing": refused(hf_hub_download, "acme/missing", "config.json")[0],
        "missing info": refused(api.model_info, "gpt2")[0],
        "missing tokenizer": refused(AutoTokenizer.from_pretrained, "acme/missing"),
        "missing dataset": refused(load_dataset, "acme/missing")[0],
        "missing revision": refused(hf_hub_download, MODEL, "config.json", revision="refs/pr/1")[0],
        "missing file": refused(hf_hub_download, MODEL, "absent.json")[0],
        "missing split": refused(load_dataset, PREFERENCES, split="train")[0],
    }


def write_model(folder: Path) -> None:
    """A Llama of one layer, 16 wide, with a byte-level tokenizer and a chat template."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **tokens})
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, **sizes}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(vocab), "dtype": "float32"}))
    shapes = {f"self_attn.{name}_proj": (16, 16) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16), "mlp.down_proj": (16, 32)}
    shapes |= {"input_layernorm": (16,), "post_attention_layernorm": (16,)}
    shapes = {f"layers.0.{name}": shape for name, shape in shapes.items()}
    shapes |= {"embed_tokens": (len(vocab), 16), "norm": (16,)}
    weights = {f"model.{name}.weight": np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    write_model(root / "models" / MODEL)
    for repository in ("models/acme/gated", "datasets/acme/gated"):
        (root / repository).mkdir(parents=True)
        (root / repository / "README.md").write_text("Ask first.")
    data = root / "datasets" / PREFERENCES / "data"
    data.mkdir(parents=True)
    for split, rows in {"train_prefs": 3, "test_prefs": 2}.items():
        table = pa.Table.from_pylist([{"chosen": f"{split} {row}", "rejected": "no"} for row in range(rows)])
        pq.write_table(table, data / f"{split}-00000-of-00001.parquet")
    configured = root / "datasets" / CONFIGURED
    configured.mkdir()
    (configured / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: fr\n  data_files: fr.jsonl\n---\n"
    )
    for name in ("en", "fr"):
        (configured / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    with Hub(root) as hub:
        hub.gated.add("acme/gated")
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def run(environment: dict[str, str], *args: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *args], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> dict[str, Any]:
    return run(hub.env(home), "errors")


def test_real_clients_load_by_name(hub: Hub, online: dict[str, Any]) -> None:
    print(online)


if __name__ == "__main__":
    print(json.dumps(load() | (load_online_only() if "errors" in sys.argv else {})))
