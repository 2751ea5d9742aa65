"""The hub's real clients load from the stand-in of hub.py, in processes with an empty cache, and then offline.

Run as a script, this file is such a process: it does the jobs of `JOBS` and prints what it got, as JSON.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import command
from tests.helpers.hub import SETTINGS, Hub

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PREFERENCES = "acme/preferences"  # two splits, by the names of its parquet files
CONFIGURED = "acme/configured"  # two configs, by the yaml of its README.md
LARGE = "acme/large"
SHARDS = {"test_prefs": 2, "train_prefs": 3}


def load() -> dict[str, Any]:
    from datasets import load_dataset
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    loaded: Any = AutoModelForCausalLM.from_pretrained(MODEL, output_loading_info=True)
    model, report = loaded
    return {
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False),
        "decoded": tokenizer.decode(tokenizer("hi")["input_ids"]),
        "config": AutoConfig.from_pretrained(MODEL).hidden_size,
        "norm": model.model.norm.weight.tolist(),
        "unmatched": sorted(report["missing_keys"] | report["unexpected_keys"]),
        "splits": {name: split.num_rows for name, split in load_dataset(PREFERENCES).items()},
        "split": load_dataset(PREFERENCES, split="test_prefs")[0],
        "configs": {name: load_dataset(CONFIGURED, name, split="train")["text"][:] for name in ("en", "fr")},
        "snapshot": len(list(Path(snapshot_download(MODEL)).iterdir())),
    }


LOADED = {
    "chat": "<user>hi",
    "decoded": "hi",
    "config": 16,
    "norm": [0.5] * 16,
    "unmatched": [],
    "splits": SHARDS,
    "split": {"chosen": "test_prefs 0", "rejected": "no"},
    "configs": {"en": ["en"], "fr": ["fr"]},
    "snapshot": 5,
}


def ask() -> dict[str, Any]:
    from datasets import load_dataset
    from huggingface_hub import HfApi, hf_hub_download
    from transformers import AutoTokenizer

    api = HfApi()
    return {
        "streamed": next(iter(load_dataset(PREFERENCES, split="train_prefs", streaming=True))),
        "files": api.list_repo_files(PREFERENCES, repo_type="dataset"),
        "top": [entry.path for entry in api.list_repo_tree(PREFERENCES, repo_type="dataset")],
        "paths": [entry.path for entry in api.get_paths_info(MODEL, ["config.json", "absent.json"])],
        "gated info": api.model_info("acme/gated").gated,
        "gated": refusal(hf_hub_download, "acme/gated", "config.json"),
        "gated tokenizer": refusal(AutoTokenizer.from_pretrained, "acme/gated"),
        "gated dataset": refusal(load_dataset, "acme/gated"),
        "gated access": [refusal(api.auth_check, repository) for repository in (MODEL, "acme/gated")],
        "missing": refusal(hf_hub_download, "acme/missing", "config.json"),
        "missing namespace": refusal(api.model_info, "gpt2"),
        "missing tokenizer": refusal(AutoTokenizer.from_pretrained, "acme/missing"),
        "missing dataset": refusal(load_dataset, "acme/missing"),
        "missing revision": refusal(hf_hub_download, MODEL, "config.json", revision="refs/pr/1"),
        "missing file": refusal(hf_hub_download, MODEL, "absent.json"),
    }


def watch() -> list[str]:
    """What a log file hears of two downloads, a model's and a data set's, each in a block of `console.show_status`."""
    import io
    import re

    from posttrain import console

    console.SLOW_SECONDS = console.REPORT_SECONDS = 0.01
    console.quiet_libraries()
    log = io.StringIO()
    out = console.SafeConsole(file=log, width=100)
    from datasets import load_dataset
    from huggingface_hub import constants, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
    with console.show_status("Loading the model", out):
        snapshot_download(LARGE)
    with console.show_status("Loading the data", out):
        load_dataset(LARGE, split="train")
    return sorted({re.sub(r"[\d.,]+ [kM]B|\d+ bytes|\d+%", "N", line) for line in log.getvalue().splitlines()})


ANSWERED = {
    "streamed": {"chosen": "train_prefs 0", "rejected": "no"},
    "files": [f"data/{split}-00000-of-00001.parquet" for split in SHARDS],
    "top": ["data"],
    "paths": ["config.json"],
    "gated info": "manual",
    "gated": "GatedRepoError",
    "gated tokenizer": "OSError from GatedRepoError",
    "gated dataset": "DatasetNotFoundError",
    "gated access": ["", "GatedRepoError"],
    "missing": "RepositoryNotFoundError",
    "missing namespace": "RepositoryNotFoundError",
    "missing tokenizer": "OSError from RepositoryNotFoundError",
    "missing dataset": "DatasetNotFoundError",
    "missing revision": "RevisionNotFoundError",
    "missing file": "RemoteEntryNotFoundError",
}


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The class of the error that the call raises, and of the hub client's error behind it; empty if it succeeds."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        call(*args, **options)
    except Exception as error:
        behind = f" from {type(error.__cause__).__name__}" if isinstance(error.__cause__, HfHubHTTPError) else ""
        return type(error).__name__ + behind
    return ""


def write_model(folder: Path) -> None:
    """A Llama of one layer, 16 wide, all weights 0.5, with a byte-level tokenizer and a chat template."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "tie_word_embeddings": True, "dtype": "float32", "vocab_size": len(vocab), **sizes}
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj": (16, 16) for name in "qkvo"}
    layer |= {"mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16), "mlp.down_proj": (16, 32)}
    layer |= {"input_layernorm": (16,), "post_attention_layernorm": (16,)}
    shapes = {f"layers.0.{name}": shape for name, shape in layer.items()}
    shapes |= {"embed_tokens": (len(vocab), 16), "norm": (16,)}
    weights = {f"model.{name}.weight": np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    write_model(root / "models" / MODEL)
    for kind in ("models", "datasets"):
        (root / kind / "acme/gated").mkdir(parents=True)
        (root / kind / "acme/gated/README.md").write_text("Ask first.")
    data = root / "datasets" / PREFERENCES / "data"
    data.mkdir(parents=True)
    for split, rows in SHARDS.items():
        table = pa.Table.from_pylist([{"chosen": f"{split} {row}", "rejected": "no"} for row in range(rows)])
        pq.write_table(table, data / f"{split}-00000-of-00001.parquet")
    configured = root / "datasets" / CONFIGURED
    configured.mkdir()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("en", "fr"))
    (configured / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("en", "fr"):
        (configured / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    with Hub(root) as hub:
        hub.gated.add("acme/gated")
        yield hub


def run(environment: dict[str, str], folder: Path, *jobs: str) -> tuple[Any, str]:
    """What this file as a script, doing the jobs, prints on both streams: the first as read from JSON."""
    path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
    done = command.run(
        [sys.executable, __file__, *jobs],
        env=environment | {"PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_real_clients_load_and_then_load_offline(hub: Hub, tmp_path: Path) -> None:
    answers, _ = run(hub.env(), tmp_path, "load", "ask")
    assert answers["load"] == LOADED
    assert answers["ask"] == ANSWERED
    assert ("HEAD", "/acme/gated/resolve/main/config.json") in hub.requests
    assert hub.unimplemented == []
    asked = len(hub.requests)
    answers, _ = run(hub.env(), tmp_path, "go_offline", "load")
    assert answers["load"] == LOADED
    assert len(hub.requests) == asked


def test_a_download_is_one_line_with_bytes_and_percent(tmp_path: Path) -> None:
    """None of the bars of the hub, `datasets` and Transformers, of which there would be one a file."""
    for kind in ("models", "datasets"):
        (tmp_path / "hub" / kind / LARGE).mkdir(parents=True)
    for part in range(3):
        (tmp_path / "hub/models" / LARGE / f"model-{part}.safetensors").write_bytes(b"0" * 400_000)
    rows = "".join(json.dumps({"text": str(n) * 100}) + "\n" for n in range(5000))
    (tmp_path / "hub/datasets" / LARGE / "train.jsonl").write_text(rows)
    with Hub(tmp_path / "hub") as hub:
        hub.pause = 0.02
        answers, errors = run(hub.env(), tmp_path, "watch")
    assert errors == ""
    heard = answers["watch"]
    assert "Loading the model: N of N (N), N/s" in heard
    assert "Loading the data: N of N (N), N/s" in heard


def test_environment_has_no_token_and_no_other_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    with Hub(tmp_path) as hub:
        kept = {name: value for name, value in hub.env().items() if name.startswith(("HF_", "HUGGING"))}
    assert kept == SETTINGS


def test_ranges_revisions_and_unimplemented_paths(tmp_path: Path) -> None:
    file = tmp_path / "models/acme/tiny/a file.txt"
    file.parent.mkdir(parents=True)
    file.write_text("0123456789")
    path = "/acme/tiny/resolve/main/a%20file.txt"
    with Hub(tmp_path) as hub:
        connection = HTTPConnection(hub.url.removeprefix("http://"))

        def ask(method: str, path: str, span: str = "") -> tuple[int, str, Any]:
            connection.request(method, path, headers={"Range": span} if span else {})
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

        for span, part, covers in [
            ("bytes=2-4", "234", "bytes 2-4/10"),
            ("bytes=7-", "789", "bytes 7-9/10"),
            ("bytes=-2", "89", "bytes 8-9/10"),
            ("bytes=8-99", "89", "bytes 8-9/10"),
        ]:
            status, body, headers = ask("GET", path, span)
            assert (status, body, headers["Content-Range"]) == (206, part, covers)
        assert ask("GET", path, "bytes=10-")[0] == 416
        status, body, headers = ask("HEAD", path)
        assert (status, body, headers["Content-Length"]) == (200, "", "10")
        assert headers["ETag"] == '"ad471007bd7f5983d273b9584e5629230150fd54"'  # git hash-object

        first = headers["X-Repo-Commit"]
        assert ask("GET", path.replace("main", first))[1] == "0123456789"
        file.write_text("new")
        assert ask("GET", path)[2]["X-Repo-Commit"] != first
        assert ask("GET", path.replace("main", first))[2]["X-Error-Code"] == "RevisionNotFound"
        assert ask("GET", "/acme/../resolve/main/tiny/a%20file.txt")[2]["X-Error-Code"] == "RepoNotFound"

        assert hub.unimplemented == []
        unknown = [("GET", "/api/models"), ("PUT", path), ("POST", "/api/models/acme/tiny/branch/new")]
        assert [ask(*request)[0] for request in unknown] == [404, 404, 404]
        assert hub.unimplemented == unknown
        connection.close()


def go_offline() -> None:
    """As HF_HUB_OFFLINE=1 does it, which is read when the clients are imported."""
    import datasets.config
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


JOBS: dict[str, Callable[[], Any]] = {"load": load, "ask": ask, "watch": watch, "go_offline": go_offline}

if __name__ == "__main__":
    print(json.dumps({job: JOBS[job]() for job in sys.argv[1:]}))
