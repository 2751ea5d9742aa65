"""What the layer costs: the same SFT and DPO work by posttrain and by a plain TRL script, interleaved.

    python benchmarks/overhead.py [--rounds 3] [--steps 12] [--hidden 1024]

Each round trains both ways in fresh processes, in turn. A process reports the median seconds of an optimizer step
(the first two left out) and its peak resident memory. The printed figures are medians over rounds, and the ratio
posttrain / plain of each round's pair, median over rounds. A random Llama (see `--hidden`), LoRA, CPU or GPU.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OPTIONS = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "max_length": 128,
    "logging_steps": 10,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def make_model(folder: Path, hidden: int) -> None:
    """A Llama of four layers with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from posttrain.data.embedded import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=4,
        num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(path: Path, rows: int) -> None:
    text = "The quick brown fox jumps over the lazy dog. "
    with path.open("w") as file:
        for i in range(rows):
            row = {"prompt": f"{i}: {text}", "chosen": text, "rejected": text[::-1]}
            file.write(json.dumps(row) + "\n")


def stopwatch() -> Any:
    """A Trainer callback that keeps the seconds of each optimizer step in `seconds`."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    return Stopwatch()


def plain(kind: str, model: str, data: str, steps: int) -> dict[str, float]:
    """A hand-written TRL script."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    trainer_class, config_class = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[kind]
    rows = load_dataset("json", data_files=data, split="train")
    if kind == "sft":
        rows = rows.rename_column("chosen", "completion").remove_columns("rejected")
    cuda = torch.cuda.is_available()
    clock = stopwatch()
    trainer = trainer_class(
        model=model,
        args=config_class(
            output_dir="plain", max_steps=steps, report_to="none", use_cpu=not cuda, bf16=cuda, **OPTIONS,
            model_init_kwargs={"dtype": "bfloat16" if cuda else "float32"},
        ),
        train_dataset=rows,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    trainer.save_model("plain/model")
    return figures(clock)


def layered(kind: str, model: str, data: str, steps: int) -> dict[str, float]:
    """The same by posttrain, as the command line would."""
    import torch
    from in_process import run

    options = [f"trainer.args.{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in OPTIONS.items()]
    options += [f"peft.lora.{k}={v}" for k, v in LORA.items()]
    options += [f"trainer={kind}", "peft=lora", f"model.path={model}", f"data.path={data}"]
    options += ["data.eval_size=0", "probe=none", "tracking=none", f"trainer.args.max_steps={steps}"]
    if kind == "dpo":
        options.append("trainer.share_prompts=false")  # the layer alone; benchmarks/sharing.py has what sharing gains
    if not torch.cuda.is_available():
        options.append("trainer.args.bf16=false")  # as the plain script, whatever the CPU could do
    return figures(run(options)[1])


def figures(clock: Any) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step": statistics.median(clock.seconds[2:]), "peak_mb": peak}


WAYS = {"plain": plain, "posttrain": layered}


def inside(way: str, kind: str, model: Path, data: Path, steps: int) -> dict[str, float]:
    """One way in this process, in a folder of its own."""
    from in_process import empty_folder

    with empty_folder():
        return WAYS[way](kind, str(model), str(data), steps)


def measure(way: str, kind: str, model: str, data: str, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", way, kind, model, data, str(steps)]
        environment = {**os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "CI": "true"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{way} {kind} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        way, kind, model, data, steps = given.run
        print("RESULT", json.dumps(WAYS[way](kind, model, data, int(steps))))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "pairs.jsonl"
        make_model(model, given.hidden)
        make_data(data, 8 * given.steps)
        print(f"{given.rounds} rounds of {given.steps} steps, hidden {given.hidden}; medians")
        print(f"{'':5}{'plain s/step':>14}{'posttrain':>12}{'ratio':>8}{'plain MB':>11}{'posttrain':>12}{'ratio':>8}")
        for kind in ("sft", "dpo"):
            results: dict[str, list[dict[str, float]]] = {"plain": [], "posttrain": []}
            for _ in range(given.rounds):
                for way in results:
                    results[way].append(measure(way, kind, str(model), str(data), given.steps))
            row = f"{kind:5}"
            for key, width in (("step", 14), ("peak_mb", 11)):
                a, b = ([r[key] for r in results[way]] for way in ("plain", "posttrain"))
                ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
                digits = 4 if key == "step" else 0
                row += f"{statistics.median(a):>{width}.{digits}f}{statistics.median(b):>12.{digits}f}{ratio:>8.3f}"
            print(row)


if __name__ == "__main__":
    main()
