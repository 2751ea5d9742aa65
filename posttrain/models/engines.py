"""Engines that replace the model in `posttrain.models.generate.generate`, and sample faster than padded batches.

In both, the next prompt takes the place of a completion that has ended. `continuous` is Transformers' continuous
batching on a model in memory. `vllm` is vLLM with its own copy of the weights, or the vLLM that a trainer samples with.

An engine has a `generation_config` with the model's stop tokens, and `draw(prompts, batch_size, settings)`, which
returns the token ids of one completion for each prompt, `batch_size` at a time. `settings` are those of Transformers'
`GenerationConfig`; the seed comes from torch's global generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.errors import PosttrainError
from posttrain.models import weights
from posttrain.runs.lineage import Source

# Tokens in a page of the cache (FlashAttention takes multiples of 256), and the most that one pass reads.
PAGE, PASS = 256, 1024
LARGEST_SEED = 2**31


def load(engine: str, source: Source, batch_size: int, length: int, model: Any = None) -> Any:
    """The sampler of `source`: an engine, or its `model`, which is loaded unless it is given.

    `length` are the most tokens of a prompt with its completion.
    """
    if engine == "vllm":
        return VLLM(source, batch_size, length)
    return of_model(engine, weights.load(source) if model is None else model)


def of_model(engine: str, model: Any, trainer: Any = None) -> Any:
    """The sampler of a `model` in memory, which `trainer` trains: the model itself, or an engine."""
    if engine == "vllm":
        return TrainersVLLM(trainer.vllm_generation, model.generation_config)
    return Continuous(model) if engine == "continuous" else model


def check_source(engine: str, source: Source, key: str) -> None:
    """Raise `PosttrainError` where the engine cannot load `source`."""
    if engine == "vllm" and source.adapter and source.run is None:
        raise PosttrainError(
            f"{key}={source.name}: an adapter outside a run, which vLLM gets merged; write it with `posttrain export "
            f"{source.name} --merge --out FOLDER` and give that folder"
        )
    if engine == "vllm" and source.quantization and not source.adapter:
        raise PosttrainError(f"{key}={source.name}: vLLM does not quantize as peft.quantization says; set peft=lora")


@dataclass
class Continuous:
    """Continuous batching with a cache for `batch_size` sequences, not for all of the free memory."""

    model: Any

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    def draw(self, prompts: Sequence[list[int]], batch_size: int, settings: dict[str, Any]) -> list[list[int]]:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        longest = max(map(len, prompts)) + settings["max_new_tokens"]
        cache = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=batch_size * math.ceil(longest / PAGE),
            max_requests_per_batch=batch_size,
            max_batch_tokens=max(PASS, batch_size),
            seed=_seed(),
            auto_switch_to_flash=False,  # it would be downloaded; model.attn_implementation chooses it
        )
        drawn = self.model.generate_batch(
            list(prompts), generation_config=GenerationConfig(**settings), continuous_batching_config=cache
        )
        # Failures are logged and left out, not raised.
        failed = [one.error for one in drawn.values() if one.error]
        if failed or len(drawn) < len(prompts):
            raise PosttrainError(f"engine=continuous: {failed[0] if failed else 'the generation thread has ended'}")
        return [one.generated_tokens for one in drawn.values()]


class VLLM:
    """vLLM with the weights of `source`; the adapter of a run is merged into its weights first."""

    def __init__(self, source: Source, batch_size: int, length: int):
        from transformers import GenerationConfig
        from vllm import LLM

        model, revision = (_merged(source), None) if source.adapter else (source.base, source.revision)
        try:
            self.generation_config = GenerationConfig.from_pretrained(model, revision=revision or "main")
        except OSError:  # it has none
            self.generation_config = GenerationConfig()
        self.llm = LLM(
            model=model,
            revision=revision,
            load_format="safetensors",  # not pickled weights
            dtype=source.dtype,
            tokenizer=source.tokenizer,
            max_model_len=length,
            max_num_seqs=batch_size,
            trust_remote_code=source.options.get("trust_remote_code", False),
        )

    def draw(self, prompts: Sequence[list[int]], batch_size: int, settings: dict[str, Any]) -> list[list[int]]:
        from vllm import SamplingParams

        seed, sampled = _seed(), settings["do_sample"]
        asked = [
            SamplingParams(
                temperature=settings["temperature"] if sampled else 0.0,
                top_p=settings["top_p"] if sampled else 1.0,
                max_tokens=settings["max_new_tokens"],
                stop_token_ids=settings["eos_token_id"],
                seed=(seed + i) % LARGEST_SEED,
                detokenize=False,
            )
            for i in range(len(prompts))
        ]
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def _merged(source: Source) -> str:
    """The folder with the run's adapter merged into its weights, where the next training would put them."""
    from posttrain.models.merge import merge

    assert source.run is not None
    folder = source.run.path / "base"
    try:
        merge(source, folder)
    except PosttrainError as error:
        raise PosttrainError(
            f"engine=vllm: {source.name}: {str(error).split('. Allowed')[0]}; merge it yourself with `posttrain export "
            f"{source.name} --merge --max-kl LIMIT --out FOLDER` and give that folder"
        ) from error
    return str(folder)


@dataclass
class TrainersVLLM:
    """The vLLM that a TRL trainer samples with, with the policy's current weights and the measurement's settings."""

    vllm: Any
    generation_config: Any

    def draw(self, prompts: Sequence[list[int]], batch_size: int, settings: dict[str, Any]) -> list[list[int]]:
        sampled = settings["do_sample"]
        wanted = {
            "temperature": settings["temperature"] if sampled else 0.0,
            "top_p": settings["top_p"] if sampled else 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_completion_length": settings["max_new_tokens"],
            "structured_outputs_regex": None,
            "generation_kwargs": {"seed": _seed()},
        }
        before = {name: getattr(self.vllm, name) for name in wanted}
        self.vllm.sync_weights()
        vars(self.vllm).update(wanted)
        try:
            return list(self.vllm.generate(prompts=list(prompts), images=None, num_generations=1)[1])
        finally:
            vars(self.vllm).update(before)


def _seed() -> int:
    return int(torch.randint(LARGEST_SEED, ()).item())
