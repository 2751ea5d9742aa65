"""The schema of a run, as dataclasses.

Nothing here knows torch: `--help` and a config error answer in about a second.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from posttrain.config.alarms import AlarmsConfig


def _setting(default: Any, text: str) -> Any:
    """A field with the text that `--help` has for it."""
    return field(default=default, metadata={"help": text})


@dataclass
class TeacherConfig:
    """The teacher in distillation: a hub id, a folder or a RUN; `quantization` as in `peft`."""

    model: str | None = None
    revision: str | None = None
    quantization: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    """Which trainer, and its own options under their own names (`trainer.args`).

    `kind` is a name (docs/trainers.md) or the path of a class, `package.module.Class`. So are `tools` (functions that
    the policy may call), `environment` (a class), `rollout` (a function) and `callbacks` (classes of Transformers'
    TrainerCallback; {package.module.Class: {arg: value}} where one takes arguments). With `share_prompts` a prompt is
    computed once for all answers to it in a batch, where that is exact.
    """

    kind: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    tools: list[str] = field(default_factory=list)
    environment: str | None = None
    rollout: str | None = None
    callbacks: list[Any] = field(default_factory=list)
    share_prompts: bool = True

    @property
    def has_objects(self) -> bool:
        """Whether the trainer is, or gets, objects of the user's: a class, a teacher, tools, a rollout, callbacks."""
        given = (self.teacher.model, self.tools, self.environment, self.rollout, self.callbacks)
        return "." in self.kind or any(given)


@dataclass
class ModelConfig:
    """The starting model: a hub id, a local folder, `embedded:smollm2` or `embedded:tiny`.

    `init_from` is a finished run of that model to continue from.
    """

    path: str = MISSING
    init_from: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "auto"
    chat_template: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class PeftConfig:
    """`method: none` trains all weights, `lora` an adapter; `quantization` holds BitsAndBytesConfig's options.

    `value` holds the options of PPO's value adapter that differ from `lora`.
    """

    method: str = "none"
    lora: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    value: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """A hub id, local files (JSONL, JSON, CSV, Parquet), `embedded:squad`, `embedded:imdb` or
    `embedded:arithmetic`; how to split and read it.

    `path` may be a list of files, or a pattern such as `shards/*.jsonl`; `mix` has several sources in its place, by
    name, each with a `weight`. `format` is detected from the rows, unless it is named. `threshold` is the lowest good
    rating, `pairs` which ones several answers make (all, one). `on_error` is stop or skip.
    `conversational` makes plain text a conversation: the prompt a user turn, what answers it an assistant turn.
    `path` may also be `reasoning_gym:TASK`; `args` are its options, or those of `embedded:squad`.
    `min_score` leaves rows of `path` out whose column `score` is lower. `path` may be a finished run of job=sample.
    """

    path: Any = MISSING
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    eval_path: Any = None
    eval_split: str | None = None
    eval_size: float = 0.05
    columns: dict[str, str] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    conversational: bool = False
    min_score: float | None = None
    max_train_rows: int | None = None
    max_eval_rows: int | None = None
    format: str = "auto"
    threshold: float | None = None
    pairs: str = "all"
    on_error: str = "stop"
    mix: dict[str, Any] = field(default_factory=dict)
    stopping_strategy: str = "first_exhausted"
    streaming: bool = False


@dataclass
class RewardConfig:
    """One reward: `package.module.function` (or a class) in TRL's signature, a reward model, or a grader.

    A reward model is a run directory or hub id, a grader a JSON file as OpenAI's API defines them.
    A reward model that is an adapter goes onto the policy's base; with `shared: false` it gets its own base.
    `timeout` is the most seconds that a call of a function may take; without one it may take for ever.
    """

    function: str | None = None
    model: str | None = None
    grader: str | None = None
    weight: float = 1.0
    shared: bool = True
    timeout: float | None = None
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """The reward models and judges that it uses, as far as they are named as such."""
        several = self.args.get("models") or []
        named = [self.model, self.args.get("model"), *(several.values() if isinstance(several, dict) else several)]
        return [model for model in named if isinstance(model, str)]


@dataclass
class TrackingConfig:
    """Where metrics go besides `metrics.jsonl`."""

    backend: str = "wandb"
    mode: str = "auto"
    project: str = "posttrain"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class SafetyConfig:
    """Files with a column `prompt`, on which refusals are counted: the first `prompts` of each."""

    harmful: str | None = None
    harmless: str | None = None
    prompts: int = 64


@dataclass
class ProbeConfig:
    """The policy's own samples on held-out prompts: with `start` before training, every `every` steps, with `during` at
    evaluations, and after training (docs/probe.md).

    `prompts` of them are sampled for KL, length and diversity; the run's rewards, `rewards` and `gold`, which training
    must not see, are scored on the same samples, or, where `greedy_prompts` is set, on greedy completions of that many
    prompts. `win_by` names the reward that decides wins against the start. `texts` is embedded:texts or a file with
    `text` and `domain`, for forgetting: `text_rows` of each domain, cut at `text_tokens`. Before DPO, `shift_prompts`
    pairs are compared with the policy's own samples.
    """

    prompts: int = 32
    greedy_prompts: int = 0
    start: bool = True
    every: int | None = None
    during: bool = False
    shift_prompts: int = 16
    max_new_tokens: int = 64
    batch_size: int = 32
    rewards: dict[str, Any] = field(default_factory=dict)
    gold: dict[str, Any] = field(default_factory=dict)
    win_by: str | None = None
    texts: str | None = None
    text_rows: int = 8
    text_tokens: int = 256
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    @property
    def judges(self) -> dict[str, Any]:
        """`rewards` and `gold`."""
        return {**self.rewards, **self.gold}


@dataclass
class SampleConfig:
    """`job=sample`: completions for the prompts of `data`, scored by `reward`, and which of them are kept."""

    n: int = _setting(4, "completions of a prompt")
    select: str = _setting("all", "which are kept: all, best, top, threshold or pairs (best against worst)")
    fraction: float = _setting(0.25, "share that top keeps")
    threshold: float | None = _setting(None, "least score that threshold keeps")
    margin: float = _setting(0.0, "least difference of scores in a pair")
    unfinished: bool = _setting(
        False, "keep completions that max_new_tokens cut off; fit for pairs alone, where they are learnt without an end"
    )
    split: str = _setting("train", "rows to take prompts from: train or eval")
    prompts: int | None = _setting(None, "prompts at most; null: all")
    temperature: float = _setting(1.0, "above 0; 1 is the model's own distribution")
    top_p: float = _setting(1.0, "nucleus sampling")
    max_new_tokens: int = _setting(64, "tokens of a completion")
    batch_size: int = _setting(32, "completions at a time")
    seed: int = _setting(0, "the same seed draws the same completions")


@dataclass
class EvaluateConfig:
    """`job=evaluate`: held-out metrics with bootstrap intervals, and benchmarks of lm-eval."""

    against: str | None = _setting(None, "a run or model to compare with, prompt by prompt")
    confidence: float = _setting(0.95, "confidence of the intervals")
    resamples: int = _setting(2000, "bootstrap samples")
    tasks: list[str] = field(default_factory=list, metadata={"help": "benchmarks of lm-eval"})
    task_path: str | None = _setting(None, "a folder with tasks of your own for lm-eval")
    num_fewshot: int | None = _setting(None, "examples before a question; null: the task's own number")
    limit: int | None = _setting(None, "questions of a task at most")
    apply_chat_template: bool = _setting(False, "put the questions of tasks into the model's chat template")


@dataclass
class DoctorConfig:
    """`job=doctor`: which checks look at the data, and when what they find is a warning or an error."""

    tokens: bool = _setting(True, "check lengths, end tokens and the loss mask")
    duplicates: bool = _setting(True, "look for equal and near-equal rows")
    language: bool = _setting(True, "look for other languages and broken encodings")
    secrets: bool = _setting(True, "look for keys and personal data")
    noise: bool = _setting(True, "estimate how many preference labels are wrong")
    sample: int | None = _setting(2000, "rows that are tokenized; null: all")
    noise_rows: int = _setting(20000, "pairs that the label-noise check trains on at most")
    near: float = _setting(0.85, "Jaccard similarity from which texts are near duplicates")
    tolerance: float = _setting(0.001, "share of bad rows from which a finding is a warning")
    stop: float = _setting(0.05, "share of bad rows from which it is an error")
    length_accuracy: float = _setting(0.65, "warn if the length of the answers alone is right in this share of pairs")
    noise_rate: float = _setting(0.05, "warn from this share of wrong labels on")
    other_language: float = _setting(0.02, "warn from this share of rows in a second language on")
    cluster: float = _setting(0.2, "warn if the largest cluster has this share of prompts, or more")
    examples: int = _setting(5, "rows shown for a finding")
    fail_on: str = _setting("error", "exit code 1 from this on: error, warning or never")


@dataclass
class Run:
    """One run, as composed from the recipe and the command line. `reward` maps names to `RewardConfig`s.

    `job` is train, sample, evaluate, doctor or pipeline; `stages` are a pipeline's, and `common` holds settings of all
    of them. `objective` is a metric or a list of them (posttrain.config.objective). `engine` draws completions outside
    training steps, in job=sample, job=evaluate and the probe: transformers, continuous or vllm (docs/sample.md).
    """

    job: str = "train"
    engine: str = "transformers"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: dict[str, Any] = field(default_factory=dict)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    stages: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    output_dir: str = "outputs"
    objective: Any = None
    dry_run: bool = False

    @property
    def rewards(self) -> dict[str, dict[str, Any]]:
        """All rewards of the run, by their place in the config."""
        return {"reward": self.reward, "probe.rewards": self.probe.rewards, "probe.gold": self.probe.gold}


# Settings that a job does not read.
OTHER_JOBS = {
    "train": ("sample", "evaluate", "doctor"),
    "sample": ("probe", "evaluate", "doctor"),
    "evaluate": ("sample", "doctor"),
    "doctor": ("sample", "evaluate", "probe", "peft", "engine"),
    "pipeline": ("doctor", "engine"),
}


def used_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Plain `settings` of a `Run`, without the sections that its job does not read and those that are empty."""
    unread = OTHER_JOBS.get(str(settings.get("job")), ())
    return {key: value for key, value in settings.items() if key not in unread and value not in ({}, None)}


@dataclass(frozen=True)
class Origin:
    """Where a run came from: its recipe, its command line, the sweep it is part of.

    `left_out` is what belongs to the recipe's own data set, where the command names another.
    """

    recipe: str | None
    overrides: tuple[str, ...]
    sweep_dir: Path | None
    left_out: str | None = None

    @property
    def command(self) -> str:
        """The command that repeats this run alone, ready for a shell."""
        return shlex.join(["posttrain", *self.overrides])
