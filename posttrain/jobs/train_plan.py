"""The plan of a training run: tokenizer, data and architecture, checked before weights load."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.console import print_facts
from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory
from posttrain.training.lengths import Lengths, check_lengths, measure
from posttrain.training.memory import format_bytes
from posttrain.training.schedule import schedule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.loading import Data
    from posttrain.data.rendering import Rendering
    from posttrain.models.hardware import Precision
    from posttrain.models.inherit import Start
    from posttrain.probe.texts import ProbeTexts
    from posttrain.training.footprint import Footprint


def show_plan(run: Run, plan: Plan, directory: RunDirectory) -> None:
    """The plan, a line per fact."""
    kind = trainers.of(run.trainer.kind)
    total, trained = plan.parameters
    source = plan.data.source
    tokens = plan.lengths.mean * (plan.data.rows or 0)
    how = "full fine-tuning" if run.peft.method == "none" else f"LoRA r={run.peft.lora.get('r', 8)}"
    if run.peft.lora.get("use_dora") and run.peft.method == "lora":
        how = how.replace("LoRA", "DoRA")
    if run.peft.quantization:
        how += f" on {run.peft.quantization.get('bnb_4bit_quant_type', '8-bit')} weights"
    checkpoint = directory.last_checkpoint() if directory.record() else None
    if kind.takes_rewards:
        from posttrain.training import online
    if run.trainer.teacher.model:
        from posttrain.training import trainer_arguments
    lines = plan.data.describe()
    if "unused" in lines and run.probe.judges:
        lines["unused"] += "; the probe's rewards may read them"
    rows = {
        "run": f"{run.trainer.kind}, {how}" + (f", continued from {checkpoint.name}" if checkpoint else ""),
        "model": f"{run.model.path}: {_count(total)} parameters, {_count(trained)} trained ({trained / total:.2%})",
        **({"starts from": plan.start.note} if plan.start.note else {}),
        "data": f"{source['path']}: {plan.data.rows or 'a stream of'} rows of about {plan.lengths.mean:.0f} tokens "
        + (f"({_count(tokens)} in all)" if tokens else "")
        + (f", {source['held_out_rows']} held out" if "rows" not in lines else ""),
        **({"own data": plan.left_out} if plan.left_out else {}),
        **lines,
        **({"learnt": learnt} if (learnt := _learnt(run, plan)) else {}),
        **plan.lengths.describe(run, plan.data.rows),
        **plan.notes,
        **({"note": note} if (note := _note(run, plan)) else {}),
        **({"rewards": ", ".join(online.reward_line(name, run) for name in run.reward)} if kind.takes_rewards else {}),
        "steps": _steps(run, plan),
        **({"teacher": trainer_arguments.teacher_line(run)} if run.trainer.teacher.model else {}),
        **({"prompts": plan.prompts} if plan.prompts else {}),
        **({"time": format_estimate(plan.seconds)} if plan.seconds else {}),
        "device": str(plan.precision),
        "memory": _memory(plan),
        "directory": str(directory.path),
    }
    print_facts(rows)


def _steps(run: Run, plan: Plan) -> str:
    """Optimizer steps, what each takes, and the learning rate where posttrain or the user chose it."""
    what = "prompt" if trainers.of(run.trainer.kind).samples_completions else "row"
    each = f", of {plan.rows_per_step} {what}{'s' if plan.rows_per_step > 1 else ''} each"
    if plan.steps_per_rollout > 1:
        each = f", {plan.steps_per_rollout} per rollout of {plan.rows_per_step} prompts"
    rate = run.trainer.args.get("learning_rate")
    return f"{plan.steps}{each}" + (f"; learning rate {rate:g}" if isinstance(rate, float) else "")


def format_estimate(seconds: float) -> str:
    """The estimate as a range, since it is right within a factor of about two."""
    low, high = seconds / 1.6, seconds * 1.6
    if high < 60:
        return "less than a minute, without evaluations and probe"
    limits = ((1, "seconds"), (60, "minutes"), (3600, "hours"), (86400, "days"))
    size, unit = next((one for one in reversed(limits) if low >= one[0]), limits[0])
    return f"about {low / size:.0f} to {high / size:.0f} {unit}, without evaluations and probe"


def _learnt(run: Run, plan: Plan) -> str | None:
    """Which turns of conversations are learnt."""
    if trainers.of(run.trainer.kind).reads == "messages":
        return "the last turn of each conversation"
    if trainers.of(run.trainer.kind).reads != "text" or "messages" not in plan.data.first.column_names:
        return None
    if run.trainer.args.get("assistant_only_loss") is False:
        return "all turns (trainer.args.assistant_only_loss=false)"
    return "assistant turns; trainer.args.assistant_only_loss=false learns all turns"


def _note(run: Run, plan: Plan) -> str | None:
    first = plan.data.first[0]
    plain = isinstance(first.get("prompt", first.get("text")), str)
    if plain and plan.tokenizer.chat_template and not run.data.conversational:
        return "the data is plain text, so the model's chat template is not used; data.conversational=true uses it"
    return None


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


@dataclass
class Plan:
    """A run that is ready to train: all its parts but the weights."""

    start: Start
    data: Data
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    parameters: tuple[int, int]
    lengths: Lengths
    memory: Footprint
    device_memory: int
    probe_texts: ProbeTexts | None
    notes: dict[str, str]
    steps: int
    rows_per_step: int
    steps_per_rollout: int
    prompts: str | None
    seconds: float | None
    left_out: str | None = None


def inputs(run: Run) -> tuple[Start, PreTrainedTokenizerBase, Any, Rendering, Data]:
    """The starting point, its tokenizer and config, and the data as rendered; raises `PosttrainError` as `prepare`."""
    from posttrain.data.loading import load
    from posttrain.data.rendering import Rendering
    from posttrain.models import architecture, starting_point, tokenizers

    start = starting_point.start(run)
    tokenizer = tokenizers.load_tokenizer(run.model, start.tokenizer)
    if start.parent is not None:
        from posttrain.models import inherit

        inherit.check_tokenizer(run, start, tokenizer)
    known = architecture.load_config(run.model, start.config, start.revision)
    tokenizers.check_size(tokenizer, run.model, known)
    rendering = Rendering(tokenizer, run.trainer)
    data = load(run.data, run.trainer.kind, rendering)
    tokenizers.check_template(tokenizer, data.first[0], run.model)
    return start, tokenizer, known, rendering, data


def prepare(run: Run, output_dir: Path) -> Plan:
    """Load tokenizer, data and architecture, and raise `PosttrainError` for what does not fit together."""
    from posttrain.data.loading import check_learnable
    from posttrain.models import architecture, hardware, value_head
    from posttrain.training import footprint, library_checks, shared_prompts
    from posttrain.training.sizes import of_config

    if run.trainer.has_objects:
        from posttrain.training import trainer_arguments

        trainer_arguments.check_code(run)
    start, tokenizer, known, rendering, data = inputs(run)
    if run.trainer.tools or run.trainer.environment:
        trainer_arguments.check_template(run, tokenizer)
    if any(run.rewards.values()):
        from posttrain import rewards

        rewards.check_columns(run, data.first, data.prompts)
    if run.trainer.teacher.model:
        trainer_arguments.check_teacher(run, tokenizer)
    check_learnable(run.trainer.kind, data)
    precision = hardware.precision(run.model, run.peft, run.trainer.args, start.dtype)
    if run.model.attn_implementation == "auto":
        chosen = architecture.attention_implementation(
            known, precision.attn_implementation, trainers.of(run.trainer.kind).scores
        )
        precision = replace(precision, attn_implementation=chosen)
    if trainers.is_ppo(run):
        from posttrain.training import online

        online.check_ppo(run, data, tokenizer, precision, known, start.base)
    library_checks.check_with_libraries(run.trainer.kind, _options(run, data, precision))
    _check_router(run, known)
    if any(run.rewards.values()):
        rewards.check_all_reachable(run)
    parameters, context = architecture.architecture(run, start.config, start.revision)
    lengths = measure(run, tokenizer, data.first)
    check_lengths(run, lengths, context)
    sizes = of_config(known, parameters)
    needed = footprint.estimate(run, precision, sizes, *lengths.longest(run))
    there = _check_memory(run, precision, needed)
    _check_space(run, parameters, output_dir)
    probe_texts = None
    if data.prompts is not None and run.probe.prompts and not trainers.of(run.trainer.kind).scores:
        from posttrain.probe import texts

        probe_texts = texts.load(run.probe, tokenizer, not isinstance(data.prompts[0]["prompt"], str))
    known_all = data.rows == len(lengths.sequence)
    rows, kind = (data.rows or 0) - (lengths.dropped(run) if known_all else 0), trainers.of(run.trainer.kind)
    if rows and (run.trainer.args.get("dataloader_drop_last") or kind.samples_completions or kind.generations):
        from posttrain.training import online

        online.check_rows(run, rows)
    steps = schedule(run, rows)
    prompts = shared_prompts.plan(run, known, precision.attn_implementation)
    notes = rendering.notes()
    if value_head.has_value_head(start.base):
        notes["value head"] = (
            "of TRL's older PPO (v_head.*), left out: the policy is trained on, PPO trains a new value function"
        )
    parts = (start, data, tokenizer, precision, parameters, lengths, needed, there, probe_texts)
    seconds = None
    if data.rows and int(os.environ.get("WORLD_SIZE", "1")) == 1 and not run.trainer.args.get("use_vllm"):
        from posttrain.training import duration

        seconds = duration.estimate(run, precision, sizes, lengths, steps)
    return Plan(*parts, notes, *steps, prompts, seconds)


def _options(run: Run, data: Data, precision: Precision) -> dict[str, Any]:
    """The trainer's options that the libraries check."""
    own = {"eval_strategy": "epoch", **run.trainer.args} if data.eval is not None else dict(run.trainer.args)
    if data.eval is None:
        own |= {"eval_strategy": "no", "eval_on_start": False}
    return {**own, "use_cpu": precision.device == "CPU", "bf16": precision.bf16, "fp16": precision.fp16}


def _check_router(run: Run, known: Any) -> None:
    coefficient = run.trainer.args.get("router_aux_loss_coef")
    if coefficient and not hasattr(known.get_text_config(), "output_router_logits"):
        raise PosttrainError(
            f"trainer.args.router_aux_loss_coef={coefficient:g}: {run.model.path} has no experts; leave it out"
        )


def _check_memory(run: Run, precision: Precision, needed: Footprint) -> int:
    """Device memory in bytes; raises `PosttrainError` if weights, gradients, optimizer and reference exceed it."""
    import torch

    from posttrain.training.memory import machine_memory

    there = machine_memory()[1] if precision.device == "CPU" else torch.cuda.get_device_properties(0).total_memory
    if needed.least > there:
        fix = "take a smaller model" if run.peft.quantization else "choose peft=qlora, or a smaller model"
        raise PosttrainError(
            f"model.path={run.model.path}: weights, gradients and optimizer take {format_bytes(needed.least)}, "
            f"and {precision.device} has {format_bytes(there)}; {fix}"
        )
    return there


def _memory(plan: Plan) -> str:
    there = format_bytes(plan.device_memory)
    if plan.memory.peak > plan.device_memory:
        return f"{plan.memory}; more than the {there} of {plan.precision.device}: lower the batch size or the length"
    return f"{plan.memory}; of {there}"


def _check_space(run: Run, parameters: tuple[int, int], output_dir: Path) -> None:
    """Check the free space for three checkpoints with trained weights and AdamW's two moments in float32."""
    needed = parameters[1] * 4 * 3 * 3
    folder = next(p for p in (output_dir, *output_dir.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PosttrainError(
            f"output_dir={run.output_dir}: {format_bytes(free)} free, and checkpoints need {format_bytes(needed)}; "
            "free some space, or train an adapter (peft=lora)"
        )
