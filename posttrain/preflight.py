"""Everything that can be known before weights load: `check` without heavy imports, `prepare` with them."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import files, objective, online, options, rewards
from posttrain.config import Run
from posttrain.data import mix, stream
from posttrain.data.shapes import NAMES
from posttrain.errors import PosttrainError
from posttrain.jobs import checks
from posttrain.rundir import data_file
from posttrain.tokens import ids
from posttrain.trainers import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data import Data
    from posttrain.inherit import Start
    from posttrain.models import Precision
    from posttrain.probe.material import Material

# Options of TRL's config classes that this layer decides.
RESERVED = {
    "output_dir": "set output_dir (the run directory is made inside it)",
    "report_to": "choose tracking=wandb|trackio|tensorboard|none",
    "run_name": "set name",
    "project": "set tracking.project",
    "disable_tqdm": "posttrain draws the progress bar",
    "resume_from_checkpoint": "the same command continues from the last checkpoint by itself",
    "model_init_kwargs": "set model.dtype, model.attn_implementation or model.kwargs",
    "trust_remote_code": "set model.trust_remote_code",
    "chat_template_path": "set model.chat_template",
    "eos_token": "set model.eos_token",
    "pad_token": "set model.pad_token",
    "do_eval": "set trainer.args.eval_strategy",
    "enable_jit_checkpoint": "posttrain saves at SIGTERM by itself",
    "hub_token": "run `hf auth login`; a token in a config would be stored in the run directory",
}
SECRETS = {
    "token": "run `hf auth login`",
    "use_auth_token": "run `hf auth login`",
    "api_key": "put it into the environment",
    "password": "put it into the environment",
}
EMBEDDED = {"model.path": ("embedded:smollm2", "embedded:tiny"), "data.path": ("embedded:squad", "embedded:imdb")}
JOBS = ("train", "sample", "evaluate", "doctor", "pipeline")
CHOICES = {
    "trainer.kind": tuple(KINDS),
    "peft.method": ("none", "lora"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "tracking.backend": ("wandb", "trackio", "tensorboard", "none"),
    "tracking.mode": ("auto", "online", "offline", "disabled"),
    "data.format": NAMES,
    "data.on_error": ("stop", "skip"),
    "data.pairs": ("all", "one"),
}


def check(run: Run) -> None:
    """Raise `PosttrainError` with all that is wrong in the config; a second at most, nothing heavy is imported."""
    if wrong := checks.choice("job", run.job, JOBS):
        raise PosttrainError(wrong)
    if run.job == "pipeline":
        from posttrain.pipeline import plan

        plan.check(run)
        return
    errors = [e for key, allowed in CHOICES.items() if (e := checks.choice(key, _value(run, key), allowed))]
    if run.trainer.kind in KINDS:
        kind = KINDS[run.trainer.kind]
        reserved = {**RESERVED, **(online.DERIVED if run.trainer.kind == "ppo" else {})}
        errors += options.check(kind.config, run.trainer.args, "trainer.args", reserved)
        errors += online.check(run) if kind.online and run.job == "train" else []
    if run.trainer.kind == "kto" and run.trainer.args.get("per_device_train_batch_size", 8) == 1:
        errors.append(
            "trainer.args.per_device_train_batch_size=1: kto estimates its KL from the other rows of a micro-batch; "
            "set at least 2, and fewer gradient_accumulation_steps"
        )
    errors += options.check_smoothing(run.trainer.kind, run.trainer.args) if run.trainer.kind in KINDS else []
    errors += options.check("LoraConfig", run.peft.lora, "peft.lora")
    errors += options.check("LoraConfig", run.peft.value, "peft.value")
    errors += _initialisation(run)
    if run.peft.value and not online.value_adapter(run):
        errors.append("peft.value: options of PPO's value adapter, for trainer=ppo with value_mode=adapter")
    errors += options.check("BitsAndBytesConfig", run.peft.quantization, "peft.quantization")
    if run.peft.quantization and run.peft.method == "none":
        errors.append("peft.quantization: a quantized model cannot be trained in full; choose peft=qlora")
    errors += _paths(run) + _secrets(asdict(run))
    errors += [error for path, entries in run.rewards.items() for error in rewards.check(entries, path)]
    errors += _lonely(run) + checks.check(run) + checks.probe(run) + objective.check(run.objective)
    if run.job == "train":
        probed = run.probe.prompts > 0 and run.trainer.kind != "reward"
        errors += objective.unmeasured(run.objective, {**run.reward, **run.probe.rewards}, run.probe.gold, probed)
    if run.data.streaming:
        errors += stream.check(run.data, run.trainer.kind, run.trainer.args.get("max_steps", -1), run.job)
    for key, value, least in (
        ("probe.prompts", run.probe.prompts, 0),
        ("probe.greedy_prompts", run.probe.greedy_prompts, 0),
        ("probe.shift_prompts", run.probe.shift_prompts, 0),
        ("probe.max_new_tokens", run.probe.max_new_tokens, 1),
        ("probe.batch_size", run.probe.batch_size, 1),
        ("data.eval_size", run.data.eval_size, 0),
        ("data.max_train_rows", run.data.max_train_rows, 1),
        ("data.max_eval_rows", run.data.max_eval_rows, 1),
    ):
        if value is not None and value < least:
            errors.append(f"{key}={value}: expected at least {least}")
    if errors:
        raise PosttrainError("\n".join(errors))


def _lonely(run: Run) -> list[str]:
    """Judges that have nothing to compare with: the probe and PPO draw one completion of each prompt."""
    alone = {"probe.rewards": run.probe.rewards} if run.job == "train" else {}
    if run.job == "evaluate" and not run.evaluate.against:
        alone = {"reward": run.reward, "probe.rewards": run.probe.rewards}
    elif (run.job == "train" and run.trainer.kind == "ppo") or (run.job == "sample" and run.sample.n == 1):
        alone["reward"] = run.reward
    return [error for path, entries in alone.items() for error in rewards.lonely(entries, path)]


def _initialisation(run: Run) -> list[str]:
    """PiSSA, OLoRA and the like change the base weights, so a base without the adapter is no reference."""
    start = run.peft.lora.get("init_lora_weights", True)
    if run.peft.method == "none" or isinstance(start, bool) or start == "gaussian":
        return []
    if run.trainer.kind in ("sft", "reward") and not run.model.init_from:
        return []
    return [
        f"peft.lora.init_lora_weights={start}: changes the base weights, which are the reference of "
        f"{run.trainer.kind} and of what goes on from it; leave it out, or choose gaussian"
    ]


def _secrets(settings: Any, path: str = "") -> list[str]:
    """Keys that hold a secret: the config is stored in the run directory and sent to the tracker."""
    if not isinstance(settings, dict):
        return []
    errors = []
    for key, value in settings.items():
        if key in SECRETS and value:
            errors.append(f"{path}{key}: a secret does not belong in a config, which is stored; {SECRETS[key]}")
        errors += _secrets(value, f"{path}{key}.")
    return errors


def _value(run: Run, key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(getattr(run, group), name)


def _paths(run: Run) -> list[str]:
    errors = mix.check(run.data)
    local = {"data.path": run.data.path, "data.eval_path": run.data.eval_path}
    for name, part in run.data.mix.items():
        local |= {f"data.mix.{name}.{key}": part.get(key) for key in ("path", "eval_path") if isinstance(part, dict)}
    for key, value in local.items():
        if not value and value != []:
            continue
        if isinstance(value, str) and value.startswith("embedded:"):
            if value not in EMBEDDED["data.path"]:
                errors.append(f"{key}={value}: choose from {', '.join(EMBEDDED['data.path'])}")
            continue
        if wrong := files.check(value):
            errors.append(f"{key}={value}: {wrong}")
            continue
        try:
            data_file(value)
        except PosttrainError as error:
            errors.append(f"{key}={error}")
    parents = {"model.init_from": run.model.init_from}
    for key, value in parents.items():
        if value and not _exists(value):
            errors.append(f"{key}={value}: no such run directory")
    for key in ("model.path", "model.chat_template"):
        value = _value(run, key)
        if value and value.startswith("embedded:") and key in EMBEDDED:
            if value not in EMBEDDED[key]:
                errors.append(f"{key}={value}: choose from {', '.join(EMBEDDED[key])}")
        elif value:
            is_file = key == "model.chat_template"
            if (is_file or value.startswith((".", "/", "~"))) and not _exists(value):
                errors.append(f"{key}={value}: no such {'file' if is_file else 'folder'}")
    return errors


def _exists(path: str) -> bool:
    return Path(os.path.expanduser(path)).exists()


@dataclass
class Plan:
    """A run that is ready to train: all its parts but the weights."""

    start: Start
    data: Data
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    parameters: tuple[int, int]
    lengths: Lengths
    material: Material
    steps: int
    rows_per_step: int
    steps_per_rollout: int


def prepare(run: Run, output_dir: Path) -> Plan:
    """Load tokenizer, data and architecture, and raise `PosttrainError` for what does not fit together."""
    from posttrain import inherit, models
    from posttrain.data import load
    from posttrain.probe import material

    start = inherit.start(run)
    tokenizer = models.tokenizer(run.model, start.tokenizer)
    inherit.check_tokenizer(run, start, tokenizer)
    data = load(run.data, run.trainer.kind)
    first = data.first[0]
    models.check_template(tokenizer, first, run.model)
    _check_columns(run, data)
    precision = models.precision(run.model, run.peft, run.trainer.args, start.dtype)
    if run.trainer.kind == "ppo":
        known = models.config(run.model, start.config, start.revision)
        online.check_ppo(run, data, tokenizer, precision, known, start.base)
    if errors := [error for path, entries in run.rewards.items() for error in rewards.reach(entries, path)]:
        raise PosttrainError("\n".join(errors))
    parameters, context = models.architecture(run, start.config, start.revision)
    lengths = _lengths(tokenizer, data)
    _check_lengths(run, lengths, context)
    _check_memory(run, precision, parameters)
    _check_space(run, parameters, output_dir)
    found = material.Material()
    if data.prompts is not None and run.probe.prompts and run.trainer.kind != "reward":
        found = material.load(run.probe, tokenizer, not isinstance(data.prompts[0]["prompt"], str))
    steps = online.schedule(run, data.rows or 0)
    return Plan(start, data, tokenizer, precision, parameters, lengths, found, *steps)


def _check_columns(run: Run, data: Data) -> None:
    available = data.first.features
    probed = data.prompts.features if data.prompts else available
    errors = []
    for path, entries in run.rewards.items():
        errors += rewards.missing_columns(entries, path, available if path == "reward" else probed)
    if errors:
        raise PosttrainError("\n".join(errors))


def _check_memory(run: Run, precision: Precision, parameters: tuple[int, int]) -> None:
    """Weights, gradients and AdamW's moments alone must fit; activations come on top."""
    import torch

    total, trained = parameters
    bits = 4.5 if run.peft.quantization.get("load_in_4bit") else 8 if run.peft.quantization else None
    each = bits / 8 if bits else {"float32": 4, "bfloat16": 2, "float16": 2}[precision.dtype]
    # A fully trained policy of DPO or KTO keeps a frozen copy of itself as reference.
    copies = 2 if run.peft.method == "none" and run.trainer.kind in ("dpo", "kto") else 1
    needed = total * each * copies + trained * 4 * 3
    if precision.device == "CPU":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        memory = torch.cuda.get_device_properties(0).total_memory
    if needed > memory:
        mend = "take a smaller model" if run.peft.quantization else "choose peft=qlora, or a smaller model"
        raise PosttrainError(
            f"model.path={run.model.path}: weights, gradients and optimizer take {needed / 1e9:.1f} GB, and "
            f"{precision.device} has {memory / 1e9:.1f} GB; {mend}"
        )


def _check_space(run: Run, parameters: tuple[int, int], output_dir: Path) -> None:
    """Checkpoints hold the trained weights and AdamW's two moments in float32, twice while one is replaced."""
    needed = parameters[1] * 4 * 3 * 2
    folder = next(p for p in (output_dir, *output_dir.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PosttrainError(
            f"output_dir={run.output_dir}: {free / 1e9:.1f} GB free, and checkpoints need {needed / 1e9:.1f} GB; "
            "free some space, or train an adapter (peft=lora)"
        )


@dataclass(frozen=True)
class Lengths:
    """Tokens of the first rows: of a whole row's longest sequence, and of its prompt alone."""

    sequence: list[int]
    prompt: list[int]

    @property
    def mean(self) -> float:
        return sum(self.sequence) / len(self.sequence)


def _lengths(tokenizer: PreTrainedTokenizerBase, data: Data) -> Lengths:
    """Rendered as the trainer will render them; for pairs the longer of the two."""
    sequence, prompt = [], []
    for row in data.first:
        start = row.get("prompt", row.get("messages", row.get("text")))
        ends = [row[c] for c in ("completion", "chosen", "rejected") if c in row]
        prompt.append(len(ids(tokenizer, start)) if ends else 0)
        sequence.append(max((len(ids(tokenizer, start + end)) for end in ends), default=len(ids(tokenizer, start))))
    return Lengths(sequence, prompt)


def _check_lengths(run: Run, lengths: Lengths, context: int | None) -> None:
    """`max_length` must leave something to learn, and everything must fit the model's context."""
    args, errors = run.trainer.args, []
    if KINDS[run.trainer.kind].online:
        longest = max(lengths.sequence) + args.get("max_completion_length", 512)
        if context and longest > context:
            errors.append(
                f"trainer.args.max_completion_length: the longest prompt and its completion take {longest} tokens, "
                f"and the model's context is {context}"
            )
    elif limit := args.get("max_length", 1024):
        if context and limit > context:
            errors.append(f"trainer.args.max_length={limit}: the model's context is {context}; set it to that or less")
        measured = lengths.sequence if run.trainer.kind == "reward" else lengths.prompt
        if min(measured) >= limit:
            errors.append(
                f"trainer.args.max_length={limit}: every row is dropped, the shortest takes {min(measured)} tokens "
                f"{'' if run.trainer.kind == 'reward' else 'before its completion '}(median {_median(measured)})"
            )
    if errors:
        raise PosttrainError("\n".join(errors))


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]
