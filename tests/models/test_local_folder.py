"""A local `model.path` that is not whole is refused before anything is trained."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.config.schema import ModelConfig
from posttrain.data.embedded import tiny
from posttrain.errors import PosttrainError
from posttrain.models import starting_point
from posttrain.models.architecture import architecture, load_config
from tests.helpers.runs import compose

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny model to damage."""
    shutil.copytree(tiny.tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def begin(folder, *overrides):
    run, _ = compose("trainer=dpo", "data.path=pairs.jsonl", f"model.path={folder}", *overrides)
    return starting_point.start(run)


def change(folder, **tensors):
    """Replace weights; `None` removes one."""
    weights = load_file(folder / "model.safetensors") | tensors
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


def shard(folder):
    weights, part = folder / "model.safetensors", folder / "model-00001-of-00001.safetensors"
    names = dict.fromkeys(load_file(weights), part.name)
    weights.rename(part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return part


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "lacks weights": (lambda f: change(f, **{UP: None, DOWN: None}), f"its weights lack {DOWN}, {UP};"),
    "wrong shape": (lambda f: change(f, **{UP: torch.zeros(3, 3)}), f"{UP} has the shape [3, 3], and config.json asks"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "it has no weights, model.safetensors;"),
    "a pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
    "cut": (lambda f: cut(f / "model.safetensors"), "model.safetensors: is damaged ("),
    "a cut part": (lambda f: cut(shard(f)), "model-00001-of-00001.safetensors: is damaged ("),
    "a missing part": (lambda f: shard(f).unlink(), "model-00001-of-00001.safetensors is missing;"),
    "a cut index": (
        lambda f: (shard(f), cut(f / "model.safetensors.index.json")),
        "model.safetensors.index.json is damaged;",
    ),
    "an empty index": (
        lambda f: (shard(f), (f / "model.safetensors.index.json").write_text("{}")),
        "model.safetensors.index.json is damaged;",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused(folder, damage):
    make, message = DAMAGE[damage]
    make(folder)
    with pytest.raises(PosttrainError) as caught:
        begin(folder)
    assert str(caught.value).startswith(f"model.path={folder}: {message}")


def test_a_whole_folder_begins(folder):
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_text("cut")  # which nothing reads
    assert begin(folder).base == str(folder)
    assert begin(folder, "trainer=reward").base == str(folder)  # its score head begins at random
    shard(folder)
    assert begin(folder).base == str(folder)


def test_a_reward_model_lacks_no_weight_but_its_head(folder):
    change(folder, **{UP: None})
    with pytest.raises(PosttrainError, match=f"its weights lack {re.escape(UP)};"):
        begin(folder, "trainer=reward")


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma3_text", "qwen2_moe", "mixtral", "mamba"])
def test_other_architectures_begin(folder, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "head_dim"), 32) | dict.fromkeys(
        ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2
    )
    experts = {"num_experts": 2} if kind == "qwen2_moe" else {"num_local_experts": 2} if kind == "mixtral" else {}
    config = AutoConfig.for_model(kind, **small, **experts)
    model = AutoModelForCausalLM.from_config(config)
    for whole in (model, model.base_model):
        shutil.rmtree(folder)
        whole.save_pretrained(folder)
        if whole is model or config.tie_word_embeddings:
            assert begin(folder).base == str(folder)


def test_loading_refuses_a_missing_weight(folder):
    from posttrain.models.weights import load
    from posttrain.runs import lineage

    change(folder, **{UP: None})
    with pytest.raises(PosttrainError, match=f"lack {re.escape(UP)}; restore"):
        load(lineage.source(str(folder)))


def test_a_model_of_another_kind_is_named(tmp_path):
    from transformers import T5Config

    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9).save_pretrained(tmp_path)
    run, _ = compose("trainer=dpo", "data.path=pairs.jsonl", f"model.path={tmp_path}")
    assert load_config(ModelConfig(path=str(tmp_path)), str(tmp_path), None).model_type == "t5"
    with pytest.raises(PosttrainError, match=r"a t5 model is no causal language model; choose one$"):
        architecture(run, str(tmp_path), None)
