"""The learning curves in docs/ppo.md: PPO on SmolLM2 against a plain reward and against a learned one, several seeds.

    python benchmarks/ppo_learning.py                          # CPU: rollouts of 32 answers
    python benchmarks/ppo_learning.py --size gpu               # rollouts of 128 answers, and more of them

The task: go on from the first eight words of SQuAD's contexts in a positive tone. The plain reward is VADER's sentiment
itself, and training begins with SmolLM2. The learned one is RLHF in miniature: SFT on how those sentences end, pairs of
the SFT model's own sentences that VADER judged, a reward model on them, PPO from the SFT adapter; VADER then stays
behind as the gold reward that PPO never sees. Prompts of training and of measuring come from different articles.
Finished parts are taken from outputs/, so that the same command goes on after a stop.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages

WORDS, TRAIN, HELD_OUT = 8, 2048, 64
SENTENCE = range(WORDS + 3, WORDS + 17)  # words of the sentences that SFT learns to finish
SIZES = {
    "cpu": {"batch": 32, "plain": (16, 40), "learned": (28, 30), "pairs": 512, "learning_rate": 3e-4},
    "gpu": {"batch": 128, "plain": (16, 100), "learned": (28, 100), "pairs": 2048, "learning_rate": 3e-4},
}  # plain, learned: tokens an answer may take, rollouts
BETA = 0.05
TITLES = {"plain": "plain reward: VADER's sentiment", "learned": "learned reward model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/images/ppo_learning.png"))
    options = parser.parse_args()
    size = SIZES[options.size]
    prompts = write_prompts(Path("outputs/ppo_learning_prompts"))
    data = [
        f"data.path={prompts / 'train.jsonl'}",
        f"data.eval_path={prompts / 'held_out.jsonl'}",
        "data.eval_split=null",
    ]
    start, model = reward_model(prompts, size, data)
    rewards = {"plain": ["reward=sentiment"], "learned": ["reward=rm", f"reward.rm.model={model}"]}
    rewards["learned"].append(f"model.init_from={start}")
    runs = {
        name: [ppo(name, seed, reward, size, data) for seed in range(options.seeds)] for name, reward in rewards.items()
    }
    print(f"reward model: held-out preference accuracy {ends(model, 'eval_accuracy')[1]:.3f}\n")
    table(runs)
    draw(runs, options.out)


def write_prompts(folder: Path) -> Path:
    """The first words of SQuAD's contexts, and how they go on; training and held-out ones from different articles."""
    from posttrain.data.embedded import squad

    folder.mkdir(parents=True, exist_ok=True)
    for split, name, count in (("train", "train", TRAIN), ("test", "held_out", HELD_OUT)):
        contexts = [turns[-1]["content"].removeprefix("Context: ") for turns in squad.load()[split]["prompt"]]
        heads: dict[str, str] = {}
        for context in contexts:
            sentence = re.split(r"(?<=[.!?])\s", context, maxsplit=1)[0]
            rest = sentence.split()[WORDS:] if len(sentence.split()) in SENTENCE else []
            heads.setdefault(" ".join(context.split()[:WORDS]), " ".join(rest))
        chosen = list(heads.items())[:count]
        pages.write_rows(folder / f"{name}.jsonl", [{"prompt": head} for head, _ in chosen])
        if split == "train":
            pages.write_rows(
                folder / "sft.jsonl", [{"prompt": head, "completion": f" {rest}"} for head, rest in chosen if rest]
            )
    return folder


def reward_model(prompts: Path, size: dict[str, Any], data: list[str]) -> tuple[Path, Path]:
    """SFT, pairs of its own completions with the better by VADER as chosen, a reward model on them; both runs."""
    start = run(
        "learning_sft",
        *("+recipe=sft_smollm2", f"data.path={prompts / 'sft.jsonl'}", "data.eval_split=null", "data.eval_size=32"),
        *("data.max_train_rows=512", "trainer.args.per_device_train_batch_size=16", "probe=none"),
    )
    pairs = run(
        "learning_pairs",
        *("+recipe=ppo_smollm2", "job=sample", "reward=sentiment", *data, f"model.init_from={start}"),
        *(f"sample.prompts={size['pairs']}", f"sample.max_new_tokens={size['learned'][0]}", "sample.n=4"),
        *("sample.select=pairs", "sample.margin=0.2", "sample.batch_size=64"),
    )
    model = run(
        "learning_reward",
        *("+recipe=reward_smollm2", f"data.path={pairs}", "data.eval_split=null", "data.eval_size=64"),
        *("data.max_train_rows=null", "trainer.args.num_train_epochs=2", f"model.init_from={start}"),
        "trainer.args.per_device_train_batch_size=16",
    )
    return start, model


def ppo(name: str, seed: int, reward: list[str], size: dict[str, Any], data: list[str]) -> Path:
    tokens, rollouts = size[name]
    options = {
        "seed": seed,
        "beta": BETA,
        "learning_rate": size["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_completion_length": tokens,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": size["batch"] // 32,
        "per_device_eval_batch_size": HELD_OUT,
        "max_steps": 2 * rollouts,  # two PPO epochs of one minibatch
    }
    return run(
        f"learning_{name}_{seed}",
        *(
            "+recipe=ppo_smollm2",
            *reward,
            "trainer.args.value_mode=head",
            *data,
            "data.max_train_rows=null",
            f"data.max_eval_rows={HELD_OUT}",
        ),
        *(f"trainer.args.{key}={value}" for key, value in options.items()),
        *("probe=default", "+probe.rewards.sentiment.function=posttrain.rewards.text.sentiment"),
        *(f"probe.prompts={HELD_OUT}", f"probe.max_new_tokens={tokens}"),
    )


def run(name: str, *overrides: str) -> Path:
    """Run the command, or find it finished; its run directory."""
    command = [sys.executable, "-m", "posttrain", *overrides, f"name={name}", "tracking=none"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return max(Path("outputs").glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ends(folder: Path, name: str) -> tuple[float, float]:
    """First and last value of a metric."""
    values = [row[name] for row in metrics(folder) if name in row]
    return values[0], values[-1]


def table(runs: dict[str, list[Path]]) -> None:
    """Held-out figures before and after, mean and standard deviation over the seeds, as Markdown."""
    shown = {
        "eval_reward": "reward it trains on",
        "probe/rewards/sentiment": "VADER's sentiment (gold)",
        "probe/kl": "KL to the start (nats per answer)",
    }
    print("| reward | held out, mean (standard deviation) over seeds | before | after |\n|---|---|---|---|")
    for name, folders in runs.items():
        for metric, title in shown.items():
            pairs = [ends(folder, metric) for folder in folders]
            before, after = (
                f"{statistics.mean(values):.3f} ({statistics.stdev(values) if len(values) > 1 else 0:.3f})"
                for values in zip(*pairs, strict=True)
            )
            print(f"| {name} | {title} | {before} | {after} |")


def draw(runs: dict[str, list[Path]], out: Path) -> None:
    """Reward and KL of every rollout, each on prompts not seen before, smoothed over five; a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4))
    for axis, (name, folders) in zip(axes, runs.items(), strict=False):
        for seed, folder in enumerate(folders):
            axis.plot(*smoothed(folder, "reward"), lw=1.4, label=f"seed {seed}")
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_ylabel("reward of a rollout", fontsize=8)
        axis.legend(fontsize=8, frameon=False)
    for name, color in (("plain", "tab:blue"), ("learned", "tab:orange")):
        for seed, folder in enumerate(runs[name]):
            axes[2].plot(*smoothed(folder, "objective/kl"), lw=1.2, color=color, label=None if seed else name)
    axes[2].set_title("KL to the start (nats per answer)", fontsize=10)
    axes[2].legend(fontsize=8, frameon=False)
    for axis in axes:
        axis.set_xlabel("rollout", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def smoothed(folder: Path, name: str, width: int = 5) -> tuple[list[int], list[float]]:
    values = [row[name] for row in metrics(folder) if name in row]
    means = [statistics.mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
    return list(range(1, len(values) + 1)), means


if __name__ == "__main__":
    main()
