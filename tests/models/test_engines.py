"""Engines draw what `generate` draws: continuous batching itself, vLLM by a module that records what it is asked."""

import json
import sys
import types
from typing import ClassVar

import pytest
import torch

from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.models import engines, weights
from posttrain.models.generate import encode_prompts, generate
from posttrain.runs import lineage
from tests.helpers.runs import SMALL, compose, rows

SAMPLE = (
    *("+recipe=dpo_smollm2", "job=sample", "sample.n=2", "sample.batch_size=4", "sample.max_new_tokens=6"),
    *("sample.unfinished=true", "sample.prompts=20", "+reward.letter.function=tests.helpers.rewards.letter"),
)
EVALUATE = (
    *("+recipe=dpo_smollm2", "job=evaluate", "evaluate.resamples=200", "probe.prompts=2", "probe.greedy_prompts=3"),
    *("probe.max_new_tokens=6", "probe.rewards={}"),
)
PROMPTS = ["a", "what is this?", "what is this?", "hello there, " * 12, "no"]


@pytest.fixture(scope="module")
def varied():
    """A random model whose greedy answers differ, its tokenizer and prompts of several lengths."""
    source = lineage.source("embedded:tiny")
    model, tokenizer = weights.load(source), weights.tokenizer(source)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model, tokenizer, encode_prompts(tokenizer, [{"prompt": text} for text in PROMPTS])


def adapted(model):
    """`model` under an adapter that changes what it says."""
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    options = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(deepcopy(model), options).eval()


@pytest.mark.parametrize("adapter", [False, True])
def test_continuous_batching_says_what_generate_says(varied, adapter):
    model, tokenizer, encoded = varied
    model = adapted(model) if adapter else model
    how = {"max_new_tokens": 10, "batch_size": 2, "do_sample": False}
    expected = generate(model, tokenizer, encoded, **how)
    steps, parts = [], []
    drawn = generate(engines.Continuous(model), tokenizer, encoded, **how, progress=parts.append, step=steps.append)
    assert drawn == expected
    assert len({tuple(one.ids) for one in drawn}) == 4, "the answers differ, so that an exchange would be seen"
    assert (sum(steps), sum(map(len, parts))) == (30, 5)
    if adapter:
        assert drawn != generate(varied[0], tokenizer, encoded, **how)


def test_continuous_batching_ends_where_the_model_ends_and_follows_the_seed(varied, monkeypatch):
    model, tokenizer, encoded = varied
    how = {"max_new_tokens": 10, "batch_size": 3}
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append([one.ids for one in generate(engines.Continuous(model), tokenizer, encoded, **how)])
    assert found[0] == found[1] != found[2]
    how["do_sample"] = False
    third = generate(engines.Continuous(model), tokenizer, encoded, **how)[3].ids[2]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [third])
    last = generate(engines.Continuous(model), tokenizer, encoded, **how)[3]
    assert (last.ended, last.ids[-1], len(last.ids) <= 3) == (True, third, True)


def test_no_prompts_are_no_completions(varied):
    """The check of DPO's pairs asks for none where the probe has sampled them all."""
    model, tokenizer, _ = varied
    assert generate(engines.Continuous(model), tokenizer, [], max_new_tokens=4, batch_size=2) == []


def test_what_fails_in_its_thread_is_raised(varied, monkeypatch):
    model, tokenizer, encoded = varied

    def broken(*args, **kwargs):
        raise RuntimeError("out of pages")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(PosttrainError, match=r"engine=continuous: .*out of pages"):
        generate(engines.Continuous(model), tokenizer, encoded, max_new_tokens=4, batch_size=2)


def test_a_data_set_and_an_evaluation_by_continuous_batching(train):
    made = train(*SAMPLE, "engine=continuous")
    assert made.record()["metrics"]["completions"] == 40
    pieces = [json.loads(line) for line in (made.path / "completions.jsonl").read_text().splitlines()]
    assert [len(piece["prompts"]) for piece in pieces] == [16, 4], "eight batches at once"
    assert "at a time, by continuous" in (made.data / "README.md").read_text()
    evaluated = [train(*EVALUATE, f"engine={name}") for name in ("transformers", "continuous")]
    greedy = [[row for row in rows(run.scores) if row.get("set") == "greedy"] for run in evaluated]
    assert len(greedy[0]) == 3
    assert greedy[0] == greedy[1]


def test_the_probe_by_continuous_batching_changes_no_training(train):
    words = ("+recipe=dpo_smollm2", "probe.greedy_prompts=4", "probe.prompts=2", "probe.max_new_tokens=6")
    words = (*words, "trainer.args.max_steps=2", "probe.shift_prompts=3")
    runs = [train(*words, f"engine={name}") for name in ("transformers", "continuous")]
    logs = [[{k: v for k, v in row.items() if "loss" in k} for row in rows(run.metrics)] for run in runs]
    assert logs[0] == logs[1]
    assert any(logs[0])
    said = [[row["completion"] for row in rows(run.samples)] for run in runs]
    assert said[0] == said[1]
    assert len(said[0]) == 8


class LLM:
    """Keeps what it is asked, and answers as the model at `model` does."""

    made: ClassVar[list["LLM"]] = []

    def __init__(self, **options):
        from transformers import AutoModelForCausalLM

        self.options, self.asked = options, []
        self.model = AutoModelForCausalLM.from_pretrained(options["model"]).eval()
        LLM.made.append(self)

    def generate(self, prompts, params, use_tqdm):
        self.asked += zip(prompts, params, strict=True)
        return [self.answer(torch.tensor([p["prompt_token_ids"]]), a) for p, a in zip(prompts, params, strict=True)]

    def answer(self, ids, asked):
        torch.manual_seed(asked.seed)
        sampled = {"do_sample": asked.temperature > 0, "temperature": asked.temperature or None, "top_p": asked.top_p}
        limits = {"max_new_tokens": asked.max_tokens, "eos_token_id": asked.stop_token_ids, "top_k": 0}
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), **sampled, **limits)
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=tuple(out[0, ids.shape[1] :].tolist()))])


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.__spec__ = types.SimpleNamespace(name="vllm")
    module.LLM, module.SamplingParams = LLM, types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM


def test_vllm_gets_the_merged_weights_the_limits_and_the_settings(finished, train, vllm):
    run = finished("+recipe=dpo_smollm2", "trainer.args.learning_rate=2e-2")
    made = train(*SAMPLE, "engine=vllm", f"model.init_from={run.path}", "sample.temperature=0.7", "sample.top_p=0.9")
    (llm,) = vllm.made
    assert llm.options["model"] == str(run.path / "base")
    assert (run.path / "base" / "model.safetensors").is_file()
    assert llm.options["tokenizer"] == str(run.model)
    assert llm.options["max_num_seqs"] == 4
    assert llm.options["trust_remote_code"] is False
    assert llm.options["load_format"] == "safetensors"
    longest = max(len(prompt["prompt_token_ids"]) for prompt, _ in llm.asked)
    assert llm.options["max_model_len"] == longest + 6
    asked = [settings for _, settings in llm.asked]
    assert {(one.temperature, one.top_p, one.max_tokens, one.detokenize) for one in asked} == {(0.7, 0.9, 6, False)}
    assert len({one.seed for one in asked}) == len(asked) == 40, "a prompt that is asked twice gets two answers"
    assert made.record()["metrics"]["completions"] == 40
    ends = set(asked[0].stop_token_ids)
    assert weights.tokenizer(lineage.source(str(run.path))).eos_token_id in ends


def test_a_merge_that_loses_something_is_not_drawn_from(finished, vllm, monkeypatch):
    run = finished("+recipe=dpo_smollm2", "trainer.args.learning_rate=2e-2")
    monkeypatch.setattr("posttrain.models.merge.MAX_KL", -1.0)
    with pytest.raises(
        PosttrainError, match=r"engine=vllm: .*is not the adapter on its base.*--max-kl LIMIT --out FOLDER"
    ):
        engines.load("vllm", lineage.source(str(run.path)), 2, 64)
    assert not vllm.made
    assert not (run.path / "base").exists()


def test_an_evaluation_by_vllm_measures_the_same(finished, train, vllm):
    run = finished("+recipe=dpo_smollm2", "trainer.args.learning_rate=2e-2")
    found = [train(*EVALUATE, f"model.init_from={run.path}", f"engine={name}") for name in ("transformers", "vllm")]
    greedy = [[row for row in rows(one.scores) if row.get("set") == "greedy"] for one in found]
    assert len(greedy[0]) == 3
    assert greedy[0] == greedy[1]
    values = [one.record()["metrics"]["implicit_margin"] for one in found]
    assert values[0] == values[1]
    assert {settings.temperature for _, settings in vllm.made[0].asked} == {0.0, 1.0}


class TrainersOwn:
    """The vLLM of a trainer, as far as TRL's `VLLMGeneration` is used."""

    def __init__(self, model):
        self.model, self.synced, self.asked = model, 0, None
        self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty = 0.6, 0.8, 20, 0.1, 1.2
        self.max_completion_length, self.structured_outputs_regex, self.generation_kwargs = 99, "a+", {"stop": ["x"]}

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations):
        self.asked = dict(vars(self))
        assert (images, num_generations) == (None, 1)
        limits = {"max_new_tokens": self.max_completion_length, "do_sample": self.temperature > 0}
        out = [self.model.generate(torch.tensor([ids]), **limits)[0, len(ids) :].tolist() for ids in prompts]
        return prompts, out, None, None


def test_the_vllm_of_a_trainer_measures_with_the_weights_of_now_and_keeps_its_settings(varied):
    import inspect

    from trl.generation.vllm_generation import VLLMGeneration

    model, tokenizer, encoded = varied
    own = TrainersOwn(model)
    before = {name: value for name, value in vars(own).items() if name not in ("model", "synced", "asked")}
    assert before.keys() <= inspect.signature(VLLMGeneration).parameters.keys(), "TRL's own attributes"
    assert list(inspect.signature(VLLMGeneration.generate).parameters)[1:4] == ["prompts", "images", "num_generations"]
    sampler = engines.of_model("vllm", model, types.SimpleNamespace(vllm_generation=own))
    how = {"max_new_tokens": 5, "batch_size": 2, "do_sample": False}
    assert generate(sampler, tokenizer, encoded, **how) == generate(model, tokenizer, encoded, **how)
    assert own.synced == 1
    wanted = {"temperature": 0.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_completion_length": 5}
    assert wanted.items() <= own.asked.items()
    assert own.asked["structured_outputs_regex"] is None
    assert set(own.asked["generation_kwargs"]) == {"seed"}
    assert {name: value for name, value in vars(own).items() if name in before} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine=vlm"], "engine=vlm: did you mean vllm"),
        (["job=sample", "engine=vllm"], r"engine=vllm: needs the package trl\[vllm\], which is not installed; pip"),
        (["engine=vllm"], r"engine=vllm: the probe measures .*; set engine=continuous"),
        (["trainer=grpo", "reward=length", "engine=vllm"], "set trainer.args.use_vllm=true, or engine=continuous"),
    ],
)
def test_an_engine_that_cannot_draw_is_refused_before_anything_loads(pairs, words, said):
    run, _ = compose("trainer=dpo", "data=squad", *SMALL, *words)
    with pytest.raises(PosttrainError, match=said):
        preflight.check(run)


def test_vllm_and_several_processes(pairs, vllm, monkeypatch):
    words = ("trainer=grpo", "data=squad", "reward=length", "engine=vllm", "+trainer.args.use_vllm=true")
    run, _ = compose(*words[:2], *SMALL, *words[2:])
    preflight.check(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PosttrainError, match="engine=vllm: with several processes"):
        preflight.check(run)


def test_weights_that_vllm_cannot_load(finished, tmp_path):
    import shutil

    run = finished("+recipe=dpo_smollm2", "trainer.args.learning_rate=2e-2")
    shutil.copytree(run.model, tmp_path / "adapter")
    source = lineage.source(str(tmp_path / "adapter"))
    with pytest.raises(
        PosttrainError, match=r"an adapter outside a run.*posttrain export .*adapter --merge --out FOLDER"
    ):
        engines.check_source("vllm", source, "evaluate.against")
    quantized = lineage.Source("x", "x", "x", quantization={"load_in_4bit": True})
    with pytest.raises(PosttrainError, match=r"model\.path=x: vLLM does not quantize"):
        engines.check_source("vllm", quantized, "model.path")
    engines.check_source("continuous", quantized, "model.path")
