"""What the layer costs: the same SFT and DPO work by posttrain and by a plain TRL script, step by step in turn.

    python benchmarks/overhead.py [--rounds 2] [--steps 30] [--hidden 512]

Each round trains both ways in two processes that take their optimizer steps in turn, so that the two steps of a pair
see the machine in the same state. The time of a step is that of the loop: batch, step, callbacks and logs. The ratio
posttrain / plain is the median over all pairs (the first two of a round left out), with the quartiles; seconds are
medians, memory is the peak resident memory of a process. A random Llama (see `--hidden`), LoRA, CPU or GPU.
"""

import argparse
import json
import os
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


class Turns:
    """Two processes that work in turn: each waits for a byte in its own pipe, and then writes one to the other's."""

    def __init__(self, own: str, other: str) -> None:
        self.own, self.other = (os.open(path, os.O_RDWR) for path in (own, other))

    def wait(self) -> None:
        os.read(self.own, 1)

    def give(self) -> None:
        os.write(self.other, b".")


def stopwatch(turns: Turns) -> Any:
    """A Trainer callback that keeps in `seconds` the time from each step's begin to the next one's."""
    from in_process import now
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.began: float | None = None

        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            self._end()
            turns.wait()
            self.began = now()

        def on_train_end(self, *args: object, **kwargs: object) -> None:
            self._end()

        def _end(self) -> None:
            if self.began is not None:
                self.seconds.append(now() - self.began)
                turns.give()

    return Stopwatch()


def plain(kind: str, model: str, data: str, steps: int, clock: Any) -> None:
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


def layered(kind: str, model: str, data: str, steps: int, clock: Any) -> None:
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
    run(options, [clock])


WAYS = {"plain": plain, "posttrain": layered}


def inside(way: str, kind: str, model: str, data: str, steps: int, turns: Turns) -> dict[str, Any]:
    """One way in this process, in a folder of its own: the seconds of its steps but the first two, and peak GiB."""
    from in_process import empty_folder, peak_gib

    clock = stopwatch(turns)
    with empty_folder():
        WAYS[way](kind, model, data, steps, clock)
    return {"seconds": clock.seconds[2:], "peak_gib": peak_gib()}


def in_turn(kind: str, model: Path, data: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Both ways, each in a process, their steps in turn; what `inside` gives of each."""
    environment = {**os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "CI": "true"}
    with tempfile.TemporaryDirectory() as folder:
        pipes = {way: str(Path(folder) / way) for way in WAYS}
        for pipe in pipes.values():
            os.mkfifo(pipe)
        begin = Turns(pipes["posttrain"], pipes["plain"])
        processes = {}
        for way, other in (("plain", "posttrain"), ("posttrain", "plain")):
            words = [way, kind, str(model), str(data), str(steps), pipes[way], pipes[other]]
            with (Path(folder) / f"{way}.log").open("w") as log:
                command = [sys.executable, __file__, "--run", *words]
                processes[way] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        begin.give()
        while any(process.poll() is None for process in processes.values()):
            if any(process.poll() for process in processes.values()):  # the other one would wait for ever
                for process in processes.values():
                    process.kill()
            time.sleep(0.5)
        return {way: _result(Path(folder) / f"{way}.log", f"{way} {kind}") for way in processes}


def compared(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Of rounds of `in_turn`: medians of seconds and peak GiB by way, and of the pairs' ratios, with quartiles."""
    seconds = {way: [s for one in rounds for s in one[way]["seconds"]] for way in WAYS}
    pairs = zip(seconds["plain"], seconds["posttrain"], strict=True)
    low, ratio, high = statistics.quantiles([ours / plain for plain, ours in pairs], n=4)
    return {
        "seconds_a_step": {way: statistics.median(seconds[way]) for way in WAYS},
        "peak_gib": {way: statistics.median(one[way]["peak_gib"] for one in rounds) for way in WAYS},
        "ratio": ratio,
        "quartiles": [low, high],
    }


def _result(log: Path, name: str) -> dict[str, Any]:
    text = log.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{name} failed:\n{text[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--run", nargs=7, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        way, kind, model, data, steps, own, other = given.run
        print("RESULT", json.dumps(inside(way, kind, model, data, int(steps), Turns(own, other))))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "pairs.jsonl"
        make_model(model, given.hidden)
        make_data(data, 8 * given.steps)
        print(f"{given.rounds} rounds of {given.steps} steps, hidden {given.hidden}")
        print(
            f"{'':5}{'plain s/step':>14}{'posttrain':>12}{'ratio':>8}{'quartiles':>16}{'plain MB':>11}{'posttrain':>12}"
        )
        for kind in ("sft", "dpo"):
            found = compared([in_turn(kind, model, data, given.steps) for _ in range(given.rounds)])
            low, high = found["quartiles"]
            step, peak = found["seconds_a_step"], {way: 1024 * gib for way, gib in found["peak_gib"].items()}
            print(
                f"{kind:5}{step['plain']:>14.4f}{step['posttrain']:>12.4f}{found['ratio']:>8.3f}"
                f"{f'{low:.3f} to {high:.3f}':>16}{peak['plain']:>11.0f}{peak['posttrain']:>12.0f}"
            )


if __name__ == "__main__":
    main()
