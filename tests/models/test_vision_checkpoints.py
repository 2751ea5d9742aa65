"""Checkpoints that also see: their text model is trained, kept and loaded again; others are refused."""

import pytest

from posttrain.errors import PosttrainError
from tests.helpers.runs import rows, weights

TEXT = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 2,
    "rope_parameters": {**ROPE, "mrope_interleaved": True},
}
EYES = {"hidden_size": 16, "intermediate_size": 16, "patch_size": 14}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gemma3():
    from transformers import Gemma3Config

    eyes = {**EYES, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28}
    return Gemma3Config(text_config=TEXT, vision_config=eyes, mm_tokens_per_image=4, image_token_index=5, **IDS)


def qwen3_5():
    from transformers import Qwen3_5Config

    eyes = {**EYES, "depth": 1, "num_heads": 1, "out_hidden_size": 32, "num_position_embeddings": 16}
    text = {**TEXT, **LINEAR}
    return Qwen3_5Config(text_config=text, vision_config=eyes, image_token_id=5, tie_word_embeddings=True, **IDS)


def save(config, folder):
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from posttrain.runs.lineage import pretrained_path

    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained_path("embedded:tiny")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [gemma3, qwen3_5])
def test_the_text_model_is_trained_and_what_it_learnt_is_loaded_again(train, tmp_path, make):
    """The class that a checkpoint names may have other module names than its text model has."""
    import torch

    from posttrain.models import weights as loading
    from posttrain.runs import lineage

    place = save(make(), tmp_path / "sees")
    words = ["trainer=dpo", "data=squad", "data.columns={}", "peft=lora", f"model.path={place}"]
    run = train(*words, "trainer.args.learning_rate=1e-2", "trainer.args.max_steps=2")
    saved = weights(run.model)
    assert all(value.abs().sum() > 0 for name, value in saved.items() if "lora_B" in name)
    assert not any("vision" in name or "visual" in name for name in saved)
    loaded = loading.load(lineage.source(str(run.path)))
    there = {name.replace(".default", ""): value for name, value in loaded.named_parameters() if "lora_" in name}
    assert there.keys() == saved.keys()
    assert all(torch.equal(value, there[name]) for name, value in saved.items())
    evaluated = train(*words, "job=evaluate", f"model.init_from={run.path}", "trainer.args.max_length=2048")
    margins = [row["eval_rewards/margins"] for row in rows(run.metrics) if "eval_rewards/margins" in row]
    assert margins[-1] > 0.01 > margins[0]
    assert evaluated.record()["metrics"]["implicit_margin"] == pytest.approx(margins[-1], rel=1e-3)


def test_one_without_a_text_model_is_refused_in_a_sentence(train, tmp_path):
    from transformers import Qwen2_5_VLConfig

    Qwen2_5_VLConfig().save_pretrained(tmp_path / "sees")
    from transformers import AutoTokenizer

    from posttrain.runs.lineage import pretrained_path

    AutoTokenizer.from_pretrained(pretrained_path("embedded:tiny")).save_pretrained(tmp_path / "sees")
    with pytest.raises(PosttrainError, match=r"model\.path=.*: a qwen2_5_vl model reads images, .* choose a text"):
        train("trainer=sft", "data=squad", "data.columns={}", "peft=lora", f"model.path={tmp_path / 'sees'}")


def test_data_with_images_is_refused_by_name(train, tmp_path):
    (tmp_path / "seen.jsonl").write_text('{"prompt": "a", "completion": "b", "images": ["a.png"]}\n' * 4)
    with pytest.raises(PosttrainError, match="images"):
        train("trainer=sft", "data=squad", "data.columns={}", "data.path=seen.jsonl")
