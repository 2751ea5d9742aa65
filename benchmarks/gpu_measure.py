"""What `benchmarks/gpu.py` measures, one function a measurement; runs in a worker process.

The Llama recipes are run as a user runs them, on a model of the shape of Llama 3.1 8B with random weights in NF4, made
on the spot, and on random text that fills `max_length`. Their tokenizer has a token for each byte. A random model draws
no EOS, so every answer has the length that is asked for.
"""

import gc
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_model import Place, llama, pairs, small_llama, start_counting
from in_process import Watch, cuda, now, peak_gib, run

from posttrain.config import recipes

# What a card of 24 GB leaves to PyTorch: its 24 GiB less the CUDA context and the driver's share.
CAP = 23 * 2**30
# Of grpo_llama and ppo_llama.
MICROBATCH = {"grpo": 8, "ppo": 2}


def measure(name: str, place: Place) -> dict[str, Any]:
    """The figures of one measurement."""
    return MEASUREMENTS[name](place)


# Running a recipe


def train(place: Place, name: str, recipe: str, *overrides: str) -> tuple[Path, Watch]:
    """Run a recipe; its run directory is kept under `name`, for later measurements."""
    for before in (place.folder / "runs").glob(f"{name}-*"):  # a finished run would not be trained again
        shutil.rmtree(before)
    given = [f"+recipe={recipe}", *overrides, f"output_dir={place.folder / 'runs'}", f"name={name}"]
    return run([*given, *(place.size.extra if recipe.endswith("_llama") else ())])


def common(place: Place, data: Path, length: int) -> list[str]:
    return [
        *(f"model.path={llama(place)}", "~data", f"data.path={data}", "data.eval_size=0"),
        *("probe=none", "tracking=none", f"trainer.args.max_length={length}"),
        *("trainer.args.save_strategy=no", "trainer.args.logging_steps=1"),
    ]


# Part 2: the Llama recipes


def offline(kind: str) -> Callable[[Place], dict[str, Any]]:
    """SFT, DPO or a reward model: the recipe's microbatch for some steps, then larger ones until memory is out."""

    def figures(place: Place) -> dict[str, Any]:
        length = place.size.lengths[kind]
        answer = length // 2
        data = pairs(place, length - answer - 1, answer)  # one for EOS
        given = [*common(place, data, length), "trainer.args.gradient_accumulation_steps=1"]
        start_counting(CAP)
        _, watch = train(place, kind, f"{kind}_llama", *given, f"trainer.args.max_steps={place.size.steps}")
        rows = watch.trainer.args.per_device_train_batch_size
        sides = 1 if kind == "sft" else 2
        return {
            "microbatch": rows,
            "tokens_a_row": sides * length,
            "seconds_a_step": watch.step,
            "tokens_per_second": rows * sides * length / watch.step,
            "peak_gib": peak_gib(),
            "by_microbatch": larger(watch.trainer, place.size.most, _next_batch),
        }

    return figures


def online(kind: str, reward: Callable[[Place], list[str]], cap: int | None = CAP, copies: int = 0) -> Any:
    """GRPO or PPO: one rollout of the recipe's size, answers of `size.answer` tokens; `copies` of the base."""

    def figures(place: Place) -> dict[str, Any]:
        size = place.size
        data = pairs(place, size.lengths[kind], 8)
        given = [o for o in common(place, data, 0) if "max_length" not in o]
        given += [f"trainer.args.max_completion_length={size.answer}", "trainer.args.max_steps=1"]
        given += [f"trainer.args.per_device_train_batch_size={MICROBATCH[kind]}"]
        given += [f"trainer.args.gradient_accumulation_steps={size.rollout // MICROBATCH[kind]}"]
        if kind == "ppo":
            # A pass over the rollout in one step, where the recipe makes four, in four steps each.
            given += ["trainer.args.num_ppo_epochs=1", "trainer.args.num_mini_batches=1"]
        start_counting(cap)
        held = [_base(place) for _ in range(copies)]
        name = f"{kind}_{copies}" if copies else kind
        _, watch = train(place, name, f"{kind}_llama", *given, *reward(place))
        args = watch.trainer.args
        log = watch.trainer.state.log_history
        found = {
            "microbatch": args.per_device_train_batch_size,
            "answers": size.rollout,
            "prompt_tokens": size.lengths[kind],
            "answer_tokens": size.answer,
            "seconds_a_step": watch.step,
            "tokens_per_second": size.rollout * size.answer / watch.step,
            "peak_gib": peak_gib(),
            "bases": len(held) + 1 + sum("shared=false" in o for o in reward(place)),
            "seconds": {k.removeprefix("time/"): v for row in log for k, v in row.items() if k.startswith("time/")},
        }
        if not copies:
            take = _of_rollout if kind == "ppo" else _of_group
            found["by_microbatch"] = larger(watch.trainer, size.most, take)
        return found

    return figures


def _base(place: Place) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(llama(place), device_map={"": 0} if cuda() else None)


def _reward_run(place: Place) -> str:
    run = next((place.folder / "runs").glob("reward*/run.json"), None)
    if run is None or json.loads(run.read_text())["status"] != "finished":
        raise RuntimeError("needs the run of the measurement `reward`")
    return str(run.parent)


def _by_length(place: Place) -> list[str]:
    return ["~reward", "+reward.length.function=posttrain.rewards.text.length"]


def _by_adapter(place: Place) -> list[str]:
    return [f"reward.rm.model={_reward_run(place)}"]


def _by_model(place: Place) -> list[str]:
    return [*_by_adapter(place), "+reward.rm.shared=false"]


# How large may a microbatch be?


def larger(trainer: Any, most: int, batch_of: Callable[[Any, int], Any]) -> dict[str, float | None]:
    """Peak GiB of a forward and backward pass by microbatch, doubled from 1 on; None at the first that does not fit.

    The weights, the adapters and their optimizer's state are in memory, as in training.
    """
    import torch

    found: dict[str, float | None] = {}
    rows = 1
    trainer.model.train()
    while rows <= most:
        if cuda():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            batch = batch_of(trainer, rows)
            if batch is None:
                break
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch)
            trainer.accelerator.backward(loss)
            found[str(rows)] = peak_gib()
            del loss, batch
        except torch.OutOfMemoryError:
            found[str(rows)] = None
            break
        finally:
            trainer.model.zero_grad(set_to_none=True)
        rows *= 2
    return found


def _next_batch(trainer: Any, rows: int) -> Any:
    trainer._train_batch_size = rows
    for batch in trainer.get_train_dataloader():
        return trainer._prepare_inputs(batch)
    return None


def _of_group(trainer: Any, rows: int) -> Any:
    """Rows of the generation batch that GRPO keeps, as one microbatch."""
    import torch

    kept = trainer._buffered_inputs
    size = len(kept[0]["completion_ids"])
    if rows > size * len(kept):
        return None
    joined = {}
    for key, value in kept[0].items():
        by_row = torch.is_tensor(value) and value.ndim and len(value) == size
        joined[key] = torch.cat([part[key] for part in kept])[:rows] if by_row else value
    return joined


def _of_rollout(trainer: Any, rows: int) -> Any:
    import torch

    from posttrain.ppo.rollout import take

    rollout = trainer._rollout
    if rows > len(rollout["completion_ids"]):
        return None
    batch = take(rollout, torch.arange(rows), trainer.pad_to_multiple_of)
    return {**batch, "num_tokens": batch["loss_mask"].sum().clamp(min=1)}


# Part 3: shared prompts


def shared(size: str, attention: str, *kinds: str) -> Callable[[Place], dict[str, Any]]:
    """Steps by plain TRL with sdpa and by posttrain with shared prompts, in turn: benchmarks/sharing.py."""

    def figures(place: Place) -> dict[str, Any]:
        import sharing

        start_counting(None)
        # FlexAttention has no backward pass on a CPU.
        ours = "sdpa" if place.rehearsal else attention
        quantized = size == "8b"
        model = str(llama(place) if quantized else small_llama(place))
        rows = []
        for kind in kinds:
            case = place.size.shared[kind]
            if quantized and not place.rehearsal:
                case = replace(case, rows=case.rows // 2)
            pairs, peaks = sharing.steps(case, model, place.size.steps, ("sdpa", ours), checkpointing=quantized)
            plain, once = (statistics.median(side) for side in zip(*pairs, strict=True))
            rows.append(
                {
                    "case": kind,
                    "rows": case.rows,
                    "prompt_tokens": case.prompt,
                    "answer_tokens": case.answer,
                    "plain_seconds": plain,
                    "shared_seconds": once,
                    "times": statistics.median(a / b for a, b in pairs),
                    "plain_gib": peaks.get(False, 0) / 1024,  # counted on a GPU only
                    "shared_gib": peaks.get(True, 0) / 1024,
                }
            )
            start_counting(None)
        return {"rows": rows}

    return figures


# Parts 1, 4, 5 and 6


def tests(place: Place) -> dict[str, Any]:
    """The tests marked `gpu`; a rehearsal only collects them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--color=no"]
    command += ["--collect-only"] if place.rehearsal else []
    # Only their files, because others need packages that have nothing to do with a GPU.
    command += [str(p) for p in (recipes.ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    done = subprocess.run(command, cwd=recipes.ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode:
        raise RuntimeError(f"{last}\n{done.stdout[-1500:]}")
    return {"summary": last}


def overhead(place: Place) -> dict[str, Any]:
    """SFT and DPO by posttrain and by a plain TRL script, which take their steps in turn: benchmarks/overhead.py."""
    import overhead as script

    model, data = place.folder / "overhead-model", place.folder / "overhead.jsonl"
    steps = 5 if place.rehearsal else 42
    start_counting(None)
    script.make_model(model, place.size.overhead_hidden)
    script.make_data(data, 8 * steps)
    found: dict[str, Any] = {"steps": steps, "hidden": place.size.overhead_hidden}
    for kind in ("sft", "dpo"):
        found[kind] = script.compared([script.in_turn(kind, model, data, steps)])
    return found


def demo(place: Place) -> dict[str, Any]:
    """The demo in bfloat16, timed from its start to its end, with its held-out figures."""
    given = ["tracking=none"]
    if place.rehearsal:
        given += ["model=tiny", "data.max_train_rows=8", "data.max_eval_rows=2", "probe.prompts=2"]
        given += [
            "probe.greedy_prompts=4",
            "probe.shift_prompts=0",
            "probe.max_new_tokens=4",
            "trainer.args.bf16=false",
        ]
        given += ["trainer.args.learning_rate=1e-2", "trainer.args.max_length=1024"]
    start_counting(None)
    began = now()
    path, _ = train(place, "demo", "dpo_smollm2", *given)
    record = json.loads((path / "run.json").read_text())
    return {
        "seconds": now() - began,
        "peak_gib": peak_gib(),
        "precision": record["precision"],
        "metrics": record["metrics"],
        "run": str(path),
    }


def drift(place: Place) -> dict[str, Any]:
    """How far merging the demo's adapter moves it: benchmarks/merge_drift.py on that run."""
    import merge_drift

    from posttrain.runs import lineage

    run = next((place.folder / "runs").glob("demo*/run.json"), None)
    if run is None:
        raise RuntimeError("needs the run of the measurement `demo`")
    start_counting(None)
    cases = merge_drift.CASES[-1:] if place.rehearsal else merge_drift.CASES
    return {"rows": list(merge_drift.rows(lineage.source(str(run.parent)), cases))}


MEASUREMENTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "tests": tests,
    "sft": offline("sft"),
    "dpo": offline("dpo"),
    "reward": offline("reward"),
    "grpo": online("grpo", _by_length),
    "ppo": online("ppo", _by_adapter),
    # Policy and reference in one base, value model and reward model each with a base of its own, as TRL 1.12 had it.
    "ppo_separate": online("ppo", _by_model, cap=None, copies=1),
    "shared_1b": shared("1b", "sdpa", "dpo", "dpo_equal", "reward", "grpo"),
    "shared_8b": shared("8b", "sdpa", "dpo", "dpo_equal", "grpo"),
    "shared_1b_flex": shared("1b", "flex_attention", "dpo", "dpo_equal"),
    "shared_8b_flex": shared("8b", "flex_attention", "dpo"),
    "overhead": overhead,
    "demo": demo,
    "drift": drift,
}
