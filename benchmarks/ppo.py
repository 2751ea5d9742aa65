"""PPO here against TRL 1.12.0's PPOTrainer, the last one TRL had: time per generated token and peak memory.

    python benchmarks/ppo.py                                   # a random Llama of 34M parameters
    python benchmarks/ppo.py --model embedded:smollm2          # SmolLM2-135M
    python benchmarks/ppo.py --model embedded:smollm2 --answers natural
    python benchmarks/ppo.py --value-mode head                 # ours with the value head on the policy

Both train a LoRA policy with a LoRA value model and a LoRA reward model on the same base, prompts, batch, tokens and
PPO epochs, in float32. `--answers full` makes every answer `--new-tokens` long; `natural` asks the embedded questions
and lets answers end where they do. Tokens are those of the answers, EOS included. TRL 1.12.0 holds three copies of the
base for that. It gets a virtual environment of its own (made once, in --venv). Runs alternate; every figure is the
median over them. The first rollout of a run is not timed. Peak memory is the process's largest resident set on a CPU,
CUDA's largest allocation on a GPU.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

# TRL 1.12.0 with the versions that this project is tested with.
PINS = (
    *("torch==2.13.0", "trl==1.12.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0"),
    "pandas",
)
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="random, embedded:smollm2, or a folder or hub id")
    parser.add_argument("--batch", type=int, default=16, help="answers per rollout")
    parser.add_argument("--answers", choices=["full", "natural"], default="full")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens per answer")
    parser.add_argument("--prompt-tokens", type=int, default=48, help="the longest prompt; the shortest is a quarter")
    parser.add_argument("--epochs", type=int, default=2, help="PPO epochs")
    parser.add_argument("--rollouts", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, alternating")
    parser.add_argument("--value-mode", choices=["adapter", "head"], default="adapter")
    parser.add_argument("--venv", type=Path, default=Path(".venv-trl-1.12"))
    parser.add_argument("--worker", choices=["trl", "posttrain"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if options.worker:
        print(json.dumps({"trl": run_trl, "posttrain": run_posttrain}[options.worker](options)))
        return
    python = environment(options.venv)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        results: dict[str, list[dict[str, Any]]] = {"trl": [], "posttrain": []}
        for repeat in range(options.repeats):
            for worker, interpreter in (("trl", python), ("posttrain", sys.executable)):
                results[worker].append(measure(worker, interpreter, folder))
                print(f"{repeat + 1}/{options.repeats} {worker}: {summary(results[worker][-1:])}", flush=True)
    report(options, results)


def environment(folder: Path) -> str:
    """The interpreter of TRL 1.12.0's virtual environment, made on the first call."""
    python = folder.absolute() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "pins.txt"
    if not done.is_file() or done.read_text() != "\n".join(PINS):
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        done.write_text("\n".join(PINS))
    return str(python)


def prepare(options: argparse.Namespace) -> None:
    """Write base model, tokenizer, reward adapter, prompts and settings into the folder that both workers read."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    if options.model == "random":
        base = random_model(options.folder / "base")
    else:
        from posttrain.runs.pretrained import pretrained_path

        base = Path(pretrained_path(options.model))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **LORA))
    model.save_pretrained(options.folder / "reward")
    prompts = questions(base) if options.answers == "natural" else random_prompts(options.prompt_tokens)
    names = ("batch", "micro_batch", "new_tokens", "epochs", "rollouts", "value_mode", "answers")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"base": str(base), "prompts": prompts}
    (options.folder / "settings.json").write_text(json.dumps(settings))


def questions(base: Path) -> list[str]:
    """The embedded questions with their contexts, rendered by the model's chat template."""
    from transformers import AutoTokenizer

    from posttrain.data.embedded import squad

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = squad.load()["train"]["prompt"][:64]
    return [str(tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True)) for row in rows]


def random_prompts(longest: int) -> list[str]:
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(longest // 4, longest + 1, (64,), generator=generator)
    words = [torch.randint(0, 5000, (int(n),), generator=generator).tolist() for n in lengths]
    return [" ".join(f"w{word}" for word in row) for row in words]


def random_model(folder: Path, vocabulary: int = 16384) -> Path:
    """A Llama of 34M parameters with random weights, and a tokenizer of as many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(vocabulary - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measure(worker: str, interpreter: str, folder: str) -> dict[str, Any]:
    command = [interpreter, __file__, "--worker", worker, "--folder", folder]
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env={**quiet, **os.environ}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# What both workers share: they import nothing of posttrain before `run_posttrain` does.


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    return json.loads((options.folder / "settings.json").read_text())


def stopwatch(steps_per_rollout: int) -> Any:
    """A callback that notes the time at the end of every rollout."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        ends: list[float]

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps_per_rollout == 0:
                self.ends.append(time.perf_counter())

    return Stopwatch()


def figures(ends: list[float], tokens: list[float], before: int, **more: Any) -> dict[str, Any]:
    """`ends` of the rollouts, after the start; `tokens` of their answers. The first rollout warms up."""
    import torch

    seconds = [b - a for a, b in itertools.pairwise(ends[1:])]
    peak = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else peak_rss()
    return {"tokens_per_second": sum(tokens[1:]) / sum(seconds), "peak_mb": peak, "imports_mb": before, **more}


def peak_rss() -> int:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def common(settings: dict[str, Any]) -> dict[str, Any]:
    """Options of the same name in both config classes."""
    import torch

    return {
        "output_dir": "unused",
        "per_device_train_batch_size": settings["micro_batch"],
        "gradient_accumulation_steps": settings["batch"] // settings["micro_batch"],
        "num_mini_batches": 1,
        "num_ppo_epochs": settings["epochs"],
        "temperature": 1.0,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "disable_tqdm": True,
        "logging_steps": 1,
    }


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, inject_adapter_in_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    settings, before = settings_of(options), peak_rss()
    base, load = settings["base"], {"dtype": torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    reward = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **load)
    reward = PeftModel.from_pretrained(reward, str(options.folder / "reward")).merge_and_unload().requires_grad_(False)
    value = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **load)
    value = inject_adapter_in_model(LoraConfig(task_type="SEQ_CLS", **LORA), value)
    value.score.requires_grad_(True)
    data = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in settings["prompts"]])
    watch, natural = stopwatch(1), settings["answers"] == "natural"
    tokens = [float(settings["batch"] * settings["new_tokens"])] * settings["rollouts"]
    if natural:
        count_answers(ppo_trainer, tokens)
    trainer = PPOTrainer(
        args=PPOConfig(
            **common(settings),
            response_length=settings["new_tokens"],
            total_episodes=settings["batch"] * settings["rollouts"],
            local_rollout_forward_batch_size=settings["batch"],
            num_sample_generations=0,
            stop_token="eos" if natural else None,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(base, **load),
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[watch],
    )
    sys.stdout = sys.stderr
    trainer.train()
    sys.stdout = sys.__stdout__
    return figures(watch.ends, tokens, before)


def count_answers(module: Any, tokens: list[float]) -> None:
    """Have TRL's PPO note the tokens up to the first EOS, and with it, where it cuts answers there."""
    cut = module.truncate_response
    tokens.clear()

    def counting(stop: int, pad: int, responses: Any) -> Any:
        ends = (responses == stop).long().cumsum(1)
        tokens.append(float(((ends == 0) | ((ends == 1) & (responses == stop))).sum()))
        return cut(stop, pad, responses)

    module.truncate_response = counting


def run_posttrain(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, PrinterCallback

    from posttrain.ppo import PPOConfig, PPOTrainer

    settings, before = settings_of(options), peak_rss()
    watch = stopwatch(settings["epochs"])
    trainer = PPOTrainer(
        model=settings["base"],
        args=PPOConfig(
            **common(settings),
            max_steps=settings["epochs"] * settings["rollouts"],
            max_completion_length=settings["new_tokens"],
            min_completion_length=settings["new_tokens"] if settings["answers"] == "full" else None,
            value_mode=settings["value_mode"],
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_dict({"prompt": settings["prompts"]}),
        processing_class=AutoTokenizer.from_pretrained(settings["base"], padding_side="left"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        reward_adapter=options.folder / "reward",
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    spent = [
        {k.removeprefix("time/"): v for k, v in row.items() if k.startswith("time/")}
        for row in trainer.state.log_history
    ]
    spent = [row for row in spent if row]
    speeds = [row["tokens_per_second"] for row in trainer.state.log_history if "tokens_per_second" in row]
    tokens = [speed * sum(row.values()) for speed, row in zip(speeds, spent, strict=True)]
    phases = {name: statistics.median(row.get(name, 0.0) for row in spent[1:]) for name in spent[0]}
    return figures(watch.ends, tokens, before, phases=phases)


# Reporting


def middle(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def summary(runs: list[dict[str, Any]]) -> str:
    return f"{middle(runs, 'tokens_per_second'):.1f} tokens/s, peak {middle(runs, 'peak_mb'):.0f} MiB"


def report(options: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    theirs, ours = results["trl"], results["posttrain"]
    print(
        f"\n{options.model}, {options.batch} answers of {'up to ' if options.answers == 'natural' else ''}"
        f"{options.new_tokens} tokens a rollout, {options.epochs} PPO "
        f"epochs, {options.repeats} runs of {options.rollouts} rollouts each, value_mode={options.value_mode}\n"
    )
    print(f"{'':22}{'tokens/s':>10}{'spread':>16}{'peak MiB':>10}{'above imports':>15}")
    for name, runs in (("TRL 1.12.0", theirs), ("posttrain", ours)):
        speeds = [run["tokens_per_second"] for run in runs]
        over = statistics.median(run["peak_mb"] - run["imports_mb"] for run in runs)
        spread = f"{min(speeds):.1f} to {max(speeds):.1f}"
        print(f"{name:22}{statistics.median(speeds):>10.1f}{spread:>16}{middle(runs, 'peak_mb'):>10.0f}{over:>15.0f}")
    over = [statistics.median(run["peak_mb"] - run["imports_mb"] for run in runs) for runs in (ours, theirs)]
    speed = middle(ours, "tokens_per_second") / middle(theirs, "tokens_per_second")
    memory = middle(ours, "peak_mb") / middle(theirs, "peak_mb")
    print(f"{'ratio':22}{speed:>10.2f}{'':16}{memory:>10.2f}{over[0] / over[1]:>15.2f}")
    phases = {name: statistics.median(run["phases"].get(name, 0.0) for run in ours) for name in ours[0]["phases"]}
    total = sum(phases.values())
    print("\nposttrain, share of a rollout's time:")
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        print(f"  {name:20}{seconds / total:>8.0%}{seconds:>9.2f} s")


if __name__ == "__main__":
    main()
