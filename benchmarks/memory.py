"""Memory of a training: what is estimated before it begins, for Llama 3 on GPUs, and against measured peaks.

    python benchmarks/memory.py             # the table of the README: which size of Llama 3 trains on which GPU
    python benchmarks/memory.py --measure   # the tables of docs/memory.md: peaks on this machine's CPU

The first is arithmetic, `posttrain.training.footprint`, with CUDA's own memory (1 GB), and 10% to spare.
The second trains random Llamas for two steps through `posttrain.jobs.train`, each in a process of its own. The peak is
the process's highest resident memory less what it held when libraries, data and tokenizer were loaded.
MALLOC_MMAP_THRESHOLD_ makes glibc give freed blocks of more than 1 MB back; by itself it keeps many below 32 MB.
"""

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Tokens of a training pass, answers that are sampled at once, and tokens of such an answer with its prompt.
ROWS, LENGTH, ANSWERS, SAMPLED, PROMPT = 8, 1024, 32, 700, 188
GPUS = (12, 16, 24, 40, 48, 80)  # GB of common GPUs
SPARE = 1.0  # GB that CUDA takes
HEADROOM = 1.1  # for fragmentation
METHODS = {"SFT, reward": "sft", "DPO, KTO": "dpo", "GRPO, RLOO": "grpo", "PPO": "ppo"}
# Layers, hidden size, feed-forward size, key numbers, billions of weights, whether head and embedding are one.
LLAMA = {
    "1B": (16, 2048, 8192, 512, 1.236, True),
    "3B": (28, 3072, 8192, 1024, 3.213, True),
    "8B": (32, 4096, 14336, 1024, 8.030, False),
}
VOCABULARY = 128256


def gigabytes(name: str, peft: str, kind: str, rank: int = 16) -> float:
    """Peak memory of a run on a GPU, in GB."""
    from posttrain.models.hardware import Precision
    from posttrain.training import footprint
    from posttrain.training.sizes import Sizes
    from tests.helpers.runs import compose

    layers, hidden, inner, keys, billions, tied = LLAMA[name]
    # Weights of an adapter on all linear layers: rank x (inputs + outputs) of each.
    adapter = layers * rank * (2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner))
    total = int(billions * 1e9)
    full = peft == "none"
    sizes = Sizes(
        layers,
        hidden,
        inner,
        hidden // 128,
        hidden,
        keys,
        VOCABULARY,
        total + (not full) * adapter,
        total if full else adapter,
        tied,
    )
    online = kind in ("grpo", "ppo")
    rows = ROWS if kind in ("sft", "grpo", "ppo") else ROWS // 2  # of a pair, both answers
    args = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": ANSWERS // rows, "beta": 0.05}
    words = [f"trainer={kind}", f"peft={peft}", "model.path=llama", "data.path=rows", "data.eval_size=0"]
    words += [f"++trainer.args.{key}={value}" for key, value in args.items() if key != "beta" or kind != "sft"]
    run, _ = compose(*words, "trainer.share_prompts=false", *(["reward=length"] if online else []))
    precision = Precision("GPU", "float32" if full else "bfloat16", True, False, "flash_attention_2")
    return footprint.estimate(run, precision, sizes, SAMPLED if online else LENGTH, PROMPT).peak / 1e9 + SPARE


def table() -> str:
    """The table in Markdown: GB with `HEADROOM`, and the smallest common GPU that has them."""
    lines = ["| Llama 3 | trained as | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
    for name in LLAMA:
        for shown, peft in (("QLoRA", "qlora"), ("LoRA", "lora"), ("full", "none")):
            cells = [_cell(gigabytes(name, peft, kind)) for kind in METHODS.values()]
            lines.append(f"| {name} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(used: float) -> str:
    needed = math.ceil(used * HEADROOM)
    return f"{needed} GB: {next((f'{size} GB' for size in GPUS if needed <= size), 'several GPUs')}"


@dataclass(frozen=True)
class Size:
    """A random Llama, and rows for it: `rows` of `length` tokens a micro-batch."""

    layers: int
    hidden: int
    length: int
    rows: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.hidden}, {self.rows} x {self.length} tokens"


SIZES = (Size(6, 256, 256, 16), Size(8, 512, 512, 4), Size(8, 768, 1024, 2))
WORDS = 16384


@dataclass(frozen=True)
class Case:
    """A training to measure: `more` are options of the trainer."""

    kind: str
    peft: str
    size: Size
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        how = {"none": "full", "lora": "LoRA", "qlora": "QLoRA"}[self.peft]
        said = [f"{name}={str(value).lower()}" for name, value in self.more.items()]
        return ", ".join([how, *said])


@dataclass(frozen=True)
class Found:
    """Bytes: estimated, and measured; `moment` is the largest in the estimate."""

    estimate: float
    peak: float
    moment: str


KINDS = {"sft": "none", "dpo": "none", "reward": "none", "ppo": "lora"}
CASES = [Case(kind, peft, size) for kind, peft in KINDS.items() for size in SIZES]
OTHERS = [
    Case("sft", "none", SIZES[1], {"gradient_checkpointing": False}),
    Case("sft", "none", SIZES[1], {"gradient_accumulation_steps": 2, "optim": "adafactor"}),
    Case("sft", "qlora", SIZES[1]),
    Case("dpo", "lora", SIZES[1], {"gradient_checkpointing": False, "bf16": True}),
    Case("reward", "lora", SIZES[1], {"gradient_checkpointing": False}),
]


def measured(case: Case) -> Found:
    """Train it in a process of its own."""
    asked = json.dumps({**vars(case), "size": vars(case.size)})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1048576"}
    command = [sys.executable, __file__, "--one", asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.kind} {case}: {done.stderr[-2000:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def measure(case: Case) -> Found:
    """In this process, which has done nothing else."""
    import gc

    import in_process

    from posttrain.jobs import train_plan
    from posttrain.training import build

    seen: dict[str, Any] = {}
    prepare, make = train_plan.prepare, build.build

    def prepared(*given: Any) -> Any:
        seen["plan"] = prepare(*given)
        return seen["plan"]

    def made(*given: Any) -> Any:
        gc.collect()
        seen["before"] = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        return make(*given)

    train_plan.prepare, build.build = prepared, made  # type: ignore[assignment]
    with in_process.empty_folder():
        _model(Path("model"), case.size)
        _rows(Path("rows.jsonl"), case)
        with contextlib.redirect_stdout(sys.stderr):
            in_process.run(_words(case))
    peak = _resident("VmHWM") - seen["before"]
    memory = seen["plan"].memory
    return Found(memory.peak, peak, memory.moment)


def _words(case: Case) -> list[str]:
    size = case.size
    args: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "bf16": False, "gradient_accumulation_steps": 1}
    args |= {"per_device_train_batch_size": size.rows, **case.more}
    args["max_completion_length" if case.kind == "ppo" else "max_length"] = size.length // (
        2 if case.kind == "ppo" else 1
    )
    words = [f"trainer={case.kind}", f"peft={case.peft}", "model.path=model", "data.path=rows.jsonl", "tracking=none"]
    words += ["data.eval_split=null", "data.eval_size=0"]
    words += ["probe.prompts=0", "probe.greedy_prompts=0", "probe.shift_prompts=0"]
    words += [f"++trainer.args.{name}={str(value).lower()}" for name, value in args.items()]
    return words + (["reward=length"] if case.kind == "ppo" else [])


def _model(folder: Path, size: Size) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from posttrain.data.embedded import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=size.hidden, intermediate_size=3 * size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64, num_key_value_heads=size.hidden // 128, tie_word_embeddings=True,
        max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rows(path: Path, case: Case) -> None:
    """Rows whose tokens, a letter each, nearly fill the length: a quarter is the prompt, for PPO a half."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(draw.choice("abcdefghij ") for _ in range(length))

    length = case.size.length
    with path.open("w") as file:
        for _ in range(4 * case.size.rows * case.more.get("gradient_accumulation_steps", 1)):
            row = {"prompt": text(length // (2 if case.kind == "ppo" else 4))}
            answers = {"sft": ["completion"], "ppo": []}.get(case.kind, ["chosen", "rejected"])
            file.write(json.dumps({**row, **{name: text(3 * length // 4 - 8) for name in answers}}) + "\n")


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def compared(cases: Iterable[Case]) -> Iterable[str]:
    """The table of docs/memory.md in Markdown, a row as soon as it is measured."""
    yield "| trainer | trained | size | estimated | measured | estimated / measured |"
    yield "|---|---|---|---|---|---|"
    for case in cases:
        found = measured(case)
        yield (
            f"| {case.kind} | {case} | {case.size} | {found.estimate / 1e9:.2f} GB | {found.peak / 1e9:.2f} GB | "
            f"{found.estimate / found.peak:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="train on this machine's CPU, and compare")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        given = json.loads(args.one)
        print(json.dumps(vars(measure(Case(**{**given, "size": Size(**given["size"])})))))
    elif args.measure:
        for line in compared([*CASES, *OTHERS]):
            print(line, flush=True)
    else:
        print(table())


if __name__ == "__main__":
    # Run by its path, Python finds the folder of this file and not the packages beside it.
    sys.path[:0] = [str(ROOT)]
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    main()
