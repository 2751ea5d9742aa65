"""What a shared prompt saves: DPO, reward and GRPO steps by posttrain and by plain TRL, in one process, in turn.

    python benchmarks/sharing.py [--rounds 5] [--only dpo-demo ...] [--curve docs/images/sharing.png]

Both trainers of a case are built from the same seed, and take optimizer steps on the same batches alternately; the
first step of each is left out. Printed are the median seconds of a step and the median over the pairs of steps of
plain / shared, which other work on the machine leaves fair. Memory is the most that a step of each adds: allocated
memory on a GPU, and on a CPU resident memory above what was there before, from a process of its own (--rss).

On a CPU the model has the shape of SmolLM2-135M with `--layers` of its 30 layers and random weights, in float32, with
LoRA on all linear layers. `benchmarks/gpu.py` measures larger models on a GPU with what is defined here.
`--curve` measures DPO steps with a prompt of 25 to 400% of the answer's length, and draws the gain.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
           "num_key_value_heads": 3, "tie_word_embeddings": True}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A trainer, and the tokens of prompts and of answers in its batches of `rows` prompts (GRPO: of 8 answers)."""

    kind: str
    rows: int
    prompt: tuple[int, int]
    answer: tuple[int, int]


CASES = {
    "dpo-demo": Case("dpo", 4, (95, 110), (10, 18)),
    "dpo-equal": Case("dpo", 4, (60, 60), (60, 60)),
    "reward-demo": Case("reward", 4, (95, 110), (10, 18)),
    "reward-equal": Case("reward", 4, (60, 60), (60, 60)),
    "grpo": Case("grpo", 1, (100, 100), (24, 24)),
}


def tokenizer() -> Any:
    """A word is a token: `w17 w4 ...`, so that lengths are exact."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{n}": n + 2 for n in range(2000)}}
    whole = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


def data(case: Case, steps: int) -> Any:
    import random

    from datasets import Dataset

    draw = random.Random(0)

    def text(lengths: tuple[int, int]) -> str:
        return "".join(f" w{draw.randrange(2000)}" for _ in range(draw.randint(*lengths)))

    rows = [{"prompt": text(case.prompt)} for _ in range(case.rows * steps)]
    if case.kind != "grpo":
        rows = [{**row, "chosen": text(case.answer), "rejected": text(case.answer)} for row in rows]
    return Dataset.from_list(rows)


def saved(case: Case) -> float:
    """Tokens that plain TRL computes, padding included, for each that is computed with shared prompts.

    It bounds the gain where all work is in proportion to tokens. What TRL's LM head computes beside is not in it.
    """
    rows = data(case, 64)
    plain = shared = 0
    for start in range(0, len(rows), case.rows):
        batch = rows[start : start + case.rows]
        prompts = [len(text.split()) for text in batch["prompt"]]
        if case.kind == "grpo":
            answers = [[case.answer[1]] * 8] * case.rows
        else:
            sides = [[len(text.split()) + 1 for text in batch[side]] for side in ("chosen", "rejected")]  # with EOS
            answers = [list(of_prompt) for of_prompt in zip(*sides, strict=True)]
        counts = [len(of_prompt) for of_prompt in answers]
        plain += sum(counts) * max(p + max(a) for p, a in zip(prompts, answers, strict=True))
        shared += case.rows * max(p + sum(a) for p, a in zip(prompts, answers, strict=True))
    return plain / shared


def save_model(folder: str, shape: dict[str, Any], words: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    if torch.cuda.is_available():
        model.bfloat16()
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def trainer(case: Case, shared: bool, model: str, words: Any, rows: Any, attention: str, checkpointing: bool) -> Any:
    """The trainer as posttrain builds it, or as TRL does."""
    import torch
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

    from posttrain.training import build, labelled_positions
    from posttrain.training.parts import Parts

    cuda = torch.cuda.is_available()
    batch = case.rows * (8 if case.kind == "grpo" else 1)
    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "report_to": "none", "use_cpu": not cuda, "bf16": cuda, "disable_tqdm": True,
        "per_device_train_batch_size": batch, "gradient_checkpointing": checkpointing, "learning_rate": 1e-5,
        "model_init_kwargs": {"dtype": "bfloat16" if cuda else "float32", "attn_implementation": attention},
    }  # fmt: skip
    if case.kind == "grpo":
        # The length is that of every answer: a random model seldom ends by itself.
        length = {"max_completion_length": case.answer[1], "generation_kwargs": {"min_new_tokens": case.answer[1]}}
        options |= {"num_generations": 8, "beta": 0.04, **length}
    lora = LoraConfig(**LORA, task_type="SEQ_CLS" if case.kind == "reward" else "CAUSAL_LM")
    if shared:
        parts = Parts(
            model=model, args=options, tokenizer=words, train=rows, eval=None, lora=lora, quantization=None,
            callbacks=[], rewards={"length": _reward}, reward_weights=[1.0],
        )  # fmt: skip
        return build.build(case.kind, parts)
    from trl.kernels.chunked_logprob import _use_triton
    from trl.trainer import utils

    assert utils._use_triton in (_use_triton, labelled_positions._leaves_out)
    makers = {
        "dpo": (DPOTrainer, DPOConfig), "reward": (RewardTrainer, RewardConfig), "grpo": (GRPOTrainer, GRPOConfig)
    }  # fmt: skip
    make, configure = makers[case.kind]
    extra = {"reward_funcs": _reward} if case.kind == "grpo" else {}
    return make(
        model=model, args=configure(**options), processing_class=words, train_dataset=rows, peft_config=lora, **extra
    )


def _reward(completions: list[str], **columns: Any) -> list[float | None]:
    return [float(len(set(text.split()))) for text in completions]


class Steps:
    """Optimizer steps of a trainer, one at a time, each as `Trainer.train` takes it: loss, backward, clip, step."""

    def __init__(self, made: Any, shared: bool):
        self.trainer, self.shared = made, shared
        made.create_optimizer()
        made.model.train()
        made.current_gradient_accumulation_steps = 1
        self.batches = iter(made.get_train_dataloader())

    def __call__(self) -> float:
        import torch
        from trl.kernels.chunked_logprob import _use_triton
        from trl.trainer import utils

        from posttrain.training import labelled_positions

        batch = next(self.batches)
        utils._use_triton = labelled_positions._leaves_out if self.shared else _use_triton
        torch.manual_seed(0)
        began = time.perf_counter()
        self.trainer.training_step(self.trainer.model, batch, None)
        torch.nn.utils.clip_grad_norm_([p for p in self.trainer.model.parameters() if p.requires_grad], 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began


def measure(case: Case, shape: dict[str, Any], rounds: int) -> Any:
    """`steps` of a new model of this shape, with sdpa."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, shape, tokenizer())
        return steps(case, folder, rounds, ("sdpa", "sdpa"))


def steps(
    case: Case, model: str, rounds: int, attention: tuple[str, str], checkpointing: bool = False
) -> tuple[list[tuple[float, float]], dict[bool, float]]:
    """(plain, shared) seconds of each pair of steps, and on a GPU the megabytes that each allocated at most.

    `attention` is that of plain TRL and of shared prompts.
    """
    import torch

    words, peaks = tokenizer(), {}
    rows = data(case, rounds + 1)
    ways = {}
    for shared, how in ((False, attention[0]), (True, attention[1])):
        ways[shared] = Steps(trainer(case, shared, model, words, rows, how, checkpointing), shared)
    pairs: list[dict[bool, float]] = []
    for n in range(rounds + 1):
        pair = {}
        for shared in (False, True) if n % 2 else (True, False):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            pair[shared] = ways[shared]()
            if torch.cuda.is_available():
                peaks[shared] = (torch.cuda.max_memory_allocated() - before) / 2**20
        pairs.append(pair)
    return [(pair[False], pair[True]) for pair in pairs[1:]], peaks


def resident(case: Case, shape: dict[str, Any], shared: bool) -> float:
    """Megabytes that two steps add to what a process with the trainer holds."""
    words = tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, shape, words)
        steps = Steps(trainer(case, shared, folder, words, data(case, 2), "sdpa", False), shared)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = held("VmRSS")
        steps(), steps()
        return held("VmHWM") - before


def held(what: str) -> float:
    """Resident megabytes of this process: VmRSS now, VmHWM at most."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(what))
    return int(line.split()[1]) / 1024


def memory(name: str, layers: int) -> dict[bool, float]:
    """`resident` of both ways, each in a process of its own."""
    found = {}
    for shared in (False, True):
        command = [sys.executable, __file__, "--layers", str(layers), "--memory", name, str(int(shared))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[shared] = json.loads(done.stdout.splitlines()[-1])
    return found


def say(name: str, case: Case, pairs: list[tuple[float, float]], peaks: dict[bool, float]) -> float:
    plain, shared = (statistics.median(side) for side in zip(*pairs, strict=True))
    gain = statistics.median(a / b for a, b in pairs)
    beside = f"{peaks[False]:>9.0f}{peaks[True]:>9.0f}{peaks[True] / peaks[False]:>7.2f}" if peaks else ""
    print(f"{name:28}{plain:>9.3f}{shared:>9.3f}{gain:>7.2f}{saved(case):>8.2f}{beside}", flush=True)
    return gain


def curve(path: str, shape: dict[str, Any], rounds: int) -> None:
    """Draw the gain of DPO steps against prompt length / answer length, the sum of both about 120 tokens."""
    import matplotlib.pyplot as plt

    ratios, gains = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), []
    for ratio in ratios:
        answer = round(120 / (1 + ratio))
        case = Case("dpo", 4, (120 - answer,) * 2, (answer,) * 2)
        gains.append(say(f"dpo, prompt {ratio:g} x answer", case, *measure(case, shape, rounds)))
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.plot(ratios, gains, marker="o")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(
        xscale="log", xlabel="prompt length / answer length", ylabel="steps per second, times TRL", ylim=(0.8, None)
    )
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.minorticks_off()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--curve", help="where to draw the gain by prompt-to-answer ratio")
    parser.add_argument("--rss", action="store_true", help="on a CPU, measure memory, too")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()

    small = {**SMOLLM2, "num_hidden_layers": given.layers}
    if given.memory:
        print(json.dumps(resident(CASES[given.memory[0]], small, given.memory[1] == "1")))
        return
    print(f"{'':28}{'plain s':>9}{'shared':>9}{'times':>7}{'tokens':>8}{'plain MB':>9}{'shared':>9}{'ratio':>7}")
    for name, case in CASES.items():
        if given.only is None or name in given.only:
            pairs, peaks = measure(case, small, given.rounds)
            say(name, case, pairs, peaks or (memory(name, given.layers) if given.rss else {}))
    if given.curve:
        curve(given.curve, small, given.rounds)


if __name__ == "__main__":
    main()
