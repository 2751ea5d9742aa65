"""An estimate of the memory that a training takes, before weights load.

The peak can be at one of a few moments: the start of a backward pass, with all activations; its end, with every
gradient; an evaluation; the sampling of answers. The memory at each is a sum of parts, and the largest sum is the
estimate. docs/memory.md compares it with measured peaks.

The activations that a layer keeps follow Korthikanti et al. 2022 (arXiv:2205.05198, section 4), counted again for
Llama's layers: RMSNorm, a gated feed-forward, fused attention, which keeps no scores. For other layers the estimate is
good as far as they are similar. With gradient checkpointing, the peak is one layer's activations and the inputs of all
layers (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.trainers import Kind
from posttrain.training import sharding
from posttrain.training.memory import format_bytes
from posttrain.training.sizes import Sizes

if TYPE_CHECKING:
    from posttrain.config.schema import Run
    from posttrain.models.hardware import Precision

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Values that an optimizer keeps per parameter, in the parameter's type; AdamW keeps two moments.
STATES = (("adafactor", 0.1), ("adamw", 2), ("lion", 1), ("sgd", 0), ("rmsprop", 1), ("adagrad", 1))
# Positions and tokens of the vocabulary in a tile of TRL's fused head (trl.kernels.chunked_logprob).
TILE = (4096, 32768)
# Copies of a tile in float32 in its backward and forward pass in PyTorch; Triton's kernels work in place.
TILE_BACKWARD, TILE_FORWARD = 9, 6
# Copies of full logits, without a fused head: the logits, the same in float32, their softmax and its gradient.
LOGITS = 4
FUSED = ("SFTTrainer", "DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer")
# PPO keeps the logits of a pass up to this number (KEPT_LOGITS in posttrain.ppo.forward).
HELD = 1 << 24


@dataclass(frozen=True)
class Pass:
    """One forward pass: tokens that the layers compute, tokens that one token attends to, and scored positions."""

    tokens: int
    width: int
    scored: int


@dataclass(frozen=True)
class Footprint:
    """Bytes by part, at each moment that may be the peak; `least` is the part that no batch size changes."""

    moments: dict[str, dict[str, float]]
    least: float

    @property
    def moment(self) -> str:
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> float:
        return sum(self.moments[self.moment].values())

    def __str__(self) -> str:
        parts = sorted(self.moments[self.moment].items(), key=lambda part: -part[1])
        named = ", ".join(f"{name} {format_bytes(value)}" for name, value in parts if value > 0.01 * self.peak)
        return f"about {format_bytes(self.peak)} in {self.moment}: {named}"


def estimate(run: Run, precision: Precision, sizes: Sizes, row: int, prompt: int) -> Footprint:
    """The peak of a training on one device, by parts.

    `row`: tokens of the longest row of data; `prompt`: how many of them are not scored.
    """
    kind, args = trainers.of(run.trainer.kind), run.trainer.args
    kept = _held_throughout(run, precision, sizes)
    gradients = kept.pop("gradients")
    micro = whole_number(run, "per_device_train_batch_size")
    accumulated = whole_number(run, "gradient_accumulation_steps")
    step = forward_pass(run, row, prompt, micro)
    accumulate = {"gradients": gradients} if accumulated > 1 else {}
    activations, layer = _activations(run, precision, sizes, step)
    in_layer = activations + (layer if checkpointing(run) else 0)  # else every layer's are counted
    moments = {
        "the backward pass": {
            **kept,
            **accumulate,
            "activations": activations,
            "logits": _logits(run, precision, sizes, step.scored, TILE_BACKWARD),
        },
        "a layer's backward pass": {**kept, **accumulate, "activations": in_layer},
        "the end of the backward pass": {**kept, "gradients": gradients, "activations": layer},
    }
    if kind.evaluates and run.data.eval_size and not kind.samples_completions and args.get("eval_strategy") != "no":
        held_out = forward_pass(run, row, prompt, whole_number(run, "per_device_eval_batch_size"))
        moments["an evaluation"] = {
            **kept,
            "activations": held_out.tokens * _without_gradient(precision, sizes),
            "logits": _logits(run, precision, sizes, held_out.scored, TILE_FORWARD),
        }
    if kind.samples_completions:
        rows = micro * accumulated * (args.get("num_mini_batches") or 1 if trainers.is_ppo(run) else 1)
        cache = rows * row * sizes.layers * 2 * sizes.keys * _activation(precision)
        moments["sampling"] = {
            **kept,
            "cache": cache * (1 + 1 / sizes.layers),  # a layer's is copied when it grows
            "activations": rows * prompt * _without_gradient(precision, sizes),
            "logits": rows * sizes.vocabulary * 4 * LOGITS,
        }
    return Footprint(moments, sum(kept.values()) + gradients)


def whole_number(run: Run, name: str) -> int:
    return int(run.trainer.args.get(name) or trainers.of(run.trainer.kind).default(name) or 1)


def _held_throughout(run: Run, precision: Precision, sizes: Sizes) -> dict[str, float]:
    """The memory that is held throughout the training, for any batch size."""
    args, full = run.trainer.args, run.peft.method == "none"
    width = BYTES[precision.dtype]
    own = width if full else 4  # an adapter is trained in float32
    trained = sizes.trained * (2 if trainers.value_adapter(run) and not full else 1)
    sharded, optimizer_sharded = sharding.parts(args)
    frozen, reward_models, teacher = 1.0 * width * (sizes.total - sizes.trained), 0.0, 0.0
    if run.peft.quantization or run.reward or run.trainer.teacher.model:
        from posttrain.training import frozen_weights

        frozen = frozen_weights.of_base(sizes, run.peft.quantization, width)
        reward_models = frozen_weights.reward_models(run)
        teacher = frozen_weights.teacher(run, width)
    return {
        "weights": (frozen + trained * own) / sharded,
        "gradients": trained * own / sharded,
        "optimizer": trained * _state(str(args.get("optim", "adamw_torch")), own) / optimizer_sharded,
        "reference": _reference(run, sizes, width) / sharded,
        "reward models": reward_models,
        "teacher": teacher,
    }


def _state(optimizer: str, width: float) -> float:
    """Bytes that an optimizer keeps for a parameter of `width` bytes on the device."""
    if "paged" in optimizer:
        return 0  # a paged state moves to the machine's memory when the device is full
    numbers = next((count for name, count in STATES if name in optimizer), 2)
    return numbers * (1 if "8bit" in optimizer else width)


def _reference(run: Run, sizes: Sizes, width: float) -> float:
    """Bytes of the reference: a second model in full fine-tuning, or a frozen copy of an inherited adapter."""
    if not keeps_reference(trainers.of(run.trainer.kind), run.trainer.args):
        return 0.0
    if run.peft.method == "none":
        return sizes.total * width
    return 4.0 * sizes.trained if run.model.init_from else 0.0


def keeps_reference(kind: Kind, args: dict[str, Any]) -> bool:
    if "ref_model" in kind.parameters:
        return not args.get("precompute_ref_log_probs", False)
    return kind.reference and bool(args.get("beta", kind.default("beta")) if kind.has("beta") else True)


def forward_pass(run: Run, row: int, prompt: int, rows: int) -> Pass:
    """The forward pass of one micro-batch of `rows` rows, all of them as long as the longest."""
    kind = trainers.of(run.trainer.kind)
    answer = row - prompt
    if kind.reads not in ("pairs", "triples"):
        return Pass(rows * row, row, rows * answer)
    scored = 0 if kind.scores else 2 * rows * answer
    together = prompt + 2 * answer  # the prompt once, and both answers behind it
    if run.trainer.share_prompts and kind.reads == "pairs" and together < 0.9 * 2 * row:
        return Pass(rows * together, together, scored)
    return Pass(2 * rows * row, row, scored)


def _activation(precision: Precision) -> int:
    """Bytes of a value that a layer computes."""
    return 2 if precision.bf16 or precision.fp16 else BYTES[precision.dtype]


def _layer(run: Run, precision: Precision, sizes: Sizes, width: int) -> float:
    """Bytes that a layer keeps per token for its backward pass.

    Queries, keys and values (repeated for all heads), attention's output; gate, its SiLU and the other factor; the
    inputs of both norms, in float32; the inputs of linear layers that are trained or have an adapter. PyTorch's
    attention keeps a mask, the eager one every score in float32 and what it is rounded to, flash attention neither.
    """
    number, weight = _activation(precision), BYTES[precision.dtype]
    hidden, inner, heads = sizes.hidden, sizes.intermediate, sizes.queries
    full = run.peft.method == "none"
    read = 5 * hidden + heads + inner  # by query, key, value, gate and up; by the output; by down
    kept = number * (4 * heads + 3 * inner) + 4 * 2 * hidden
    if full:
        kept += weight * 2 * hidden  # the inputs of the norms' weights
    if not full and run.peft.lora.get("lora_dropout"):
        kept += (number + 4) * read  # each adapter has a mask, in float32, and its own input
    elif number == weight and (full or weight == 4):
        kept += number * (2 * hidden + inner)  # readers share their input
    else:
        kept += number * (read - (heads if full else 0))  # each reader casts it
    return kept + width * {"sdpa": number, "eager": (4 + number) * sizes.heads}.get(precision.attn_implementation, 0)


def checkpointing(run: Run) -> bool:
    default = trainers.of(run.trainer.kind).default("gradient_checkpointing")
    return bool(run.trainer.args.get("gradient_checkpointing", default))


def _activations(run: Run, precision: Precision, sizes: Sizes, step: Pass) -> tuple[float, float]:
    """Activation bytes at the start of a backward pass, and at its last layer, with the gradients in that layer."""
    layer = step.tokens * _layer(run, precision, sizes, step.width)
    number, weight = _activation(precision), BYTES[precision.dtype]
    ends = step.tokens * sizes.hidden * 4 * 4  # embeddings, the last norm, and what the head takes
    passing = step.tokens * (2 * sizes.intermediate * number + 2 * sizes.hidden * 4)  # gradients within a layer
    if checkpointing(run):
        return step.tokens * sizes.layers * sizes.hidden * weight + ends, layer + passing
    cast = 2 * (sizes.total - sizes.embedding) if run.peft.method == "none" and number < weight else 0
    return sizes.layers * layer + ends + cast, layer + passing


def _without_gradient(precision: Precision, sizes: Sizes) -> float:
    """Bytes per token in a layer that keeps no activations."""
    return _activation(precision) * (4 * sizes.queries + 3 * sizes.intermediate) + 4 * 3 * sizes.hidden


def _logits(run: Run, precision: Precision, sizes: Sizes, positions: int, copies: int) -> float:
    """The peak bytes of the head: a tile of TRL's fused head, or all logits for a trainer without it."""
    kind = trainers.of(run.trainer.kind)
    trained = run.peft.method == "none"
    gradient = 4 * sizes.vocabulary * sizes.hidden if trained and copies == TILE_BACKWARD else 0
    if not positions:
        return 0.0
    if not kind.is_a(*FUSED) or (trainers.is_ppo(run) and positions * sizes.vocabulary <= HELD):
        return float(positions * sizes.vocabulary * 4 * LOGITS + gradient)
    tile = min(positions, TILE[0]) * min(sizes.vocabulary, TILE[1])
    in_place = precision.device != "CPU"
    return float(tile * (_activation(precision) + (0 if in_place else 4 * copies)) + gradient)
