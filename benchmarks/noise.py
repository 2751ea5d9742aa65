"""Preferences flipped at random: what DPO makes of them, what robust DPO does, and what the data doctor says.

    python benchmarks/noise.py [--seeds 1,2,3] [--out outputs/noise]      # goes on where it was
    python benchmarks/noise.py --docs      # and put table and picture into docs/studies/noise.md

Pairs are made of the embedded movie reviews: the prompt asks for a favourable review, chosen is the beginning of a
positive one, rejected that of a negative one. A share of the training pairs is flipped; the held-out pairs are not. The
model is a random two-layer Llama with a token for each of the 1,500 most frequent words, trained in full, so that a run
takes seconds. Robust DPO (Chowdhury et al. 2024, "Provably Robust DPO", arXiv:2403.00409) is told the true rate. The
doctor, whose own model is far cheaper, reads the same pairs, and more of their kind.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pages
from in_process import run

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "studies" / "noise.md"
PICTURE = ROOT / "docs" / "images" / "noise.png"
RATES = (0.0, 0.1, 0.2, 0.3)
METHODS = {"dpo": "DPO", "robust": "robust DPO"}
SHIFT = {"dpo": -0.002, "robust": 0.002}  # so that error bars stand side by side
WORDS, VOCABULARY = 40, 1500


def reviews(few: int, held_out: int, many: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`many` training pairs, of which the first `few` are trained on, and held-out ones; no review stands twice."""
    from posttrain.data.embedded import imdb

    rows = imdb.load()["gold"]
    wanted = max(few, many) + held_out
    sides: dict[bool, list[str]] = {True: [], False: []}
    for row in rows.select(range(min(len(rows), 3 * wanted))):
        sides[row["label"]].append(" ".join(re.findall(r"[\w']+", row["text"].lower())[:WORDS]))
    pairs = [
        {"prompt": f"favourable review {n} :", "chosen": f" {good}", "rejected": f" {bad}"}
        for n, (good, bad) in enumerate(zip(sides[True], sides[False], strict=False))
    ][:wanted]
    if len(pairs) < wanted:
        raise SystemExit(f"only {len(pairs)} pairs can be made of the reviews, {wanted} are wanted")
    return pairs[:few] + pairs[few + held_out :], pairs[few : few + held_out]


def flipped(pairs: Sequence[dict[str, str]], rate: float, seed: int) -> list[dict[str, str]]:
    """The pairs, of which a share `rate`, to the pair, has chosen and rejected exchanged."""
    wrong = set(random.Random(seed).sample(range(len(pairs)), round(rate * len(pairs))))
    return [
        {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} if n in wrong else pair
        for n, pair in enumerate(pairs)
    ]


def make_model(folder: Path, texts: Sequence[str]) -> None:
    """A random Llama, and a tokenizer of the most frequent words of `texts`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    counted = Counter(word for text in texts for word in text.split()).most_common(VOCABULARY - 3)
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {word: n + 3 for n, (word, _) in enumerate(counted)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class Study:
    """The runs of the study, kept in `results.json` as they are done."""

    def __init__(self, folder: Path, pairs: int, held_out: int, epochs: int, many: int):
        self.folder, self.pairs, self.epochs = folder.absolute(), pairs, epochs
        self.folder.mkdir(parents=True, exist_ok=True)
        self.train, clean = reviews(pairs, held_out, many)
        self.held_out = pages.write_rows(self.folder / "held_out.jsonl", clean)
        few = self.train[:pairs]
        make_model(self.folder / "model", [pair[side] for pair in few for side in ("chosen", "rejected")])
        self.file = self.folder / "results.json"
        settings = {"pairs": pairs, "held_out": held_out, "epochs": epochs, "many": many}
        self.results: dict[str, Any] = {**settings, "doctor": {}, "accuracy": {}}
        if self.file.is_file():
            before = json.loads(self.file.read_text())
            if {name: before[name] for name in settings} != settings:
                raise SystemExit(f"{self.file}: of other settings; take another --out")
            self.results = before

    def keep(self, part: str, key: str, value: Any) -> None:
        self.results[part][key] = value
        self.file.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")

    def common(self, pairs: int, rate: float, seed: int) -> list[str]:
        data = self.folder / f"train-{pairs}-{rate}-{seed}.jsonl"
        pages.write_rows(data, flipped(self.train[:pairs], rate, seed))
        return [
            *("trainer=dpo", f"model.path={self.folder / 'model'}", f"data.path={data}", "tracking=none"),
            *(f"data.eval_path={self.held_out}", f"output_dir={self.folder / 'runs'}"),
        ]

    def doctor(self, pairs: int, rate: float, seed: int) -> dict[str, Any]:
        """The numbers of the doctor's finding on label noise, and what it says."""
        key = f"{pairs} {rate} {seed}"
        if key not in self.results["doctor"]:
            others = [f"doctor.{name}=false" for name in ("tokens", "duplicates", "language", "secrets")]
            path, _ = run([*self.common(pairs, rate, seed), "job=doctor", "doctor.fail_on=never", *others])
            findings = json.loads((path / "doctor.json").read_text())["findings"]
            (found,) = [one for one in findings if one["name"] == "noise"]
            self.keep("doctor", key, {**found["numbers"], "says": found["says"]})
        return self.results["doctor"][key]

    def accuracy(self, method: str, rate: float, seed: int) -> float:
        """Held-out preference accuracy of the trained policy's implicit reward."""
        told = rate if method == "robust" else 0.0
        key = f"{'robust' if told else 'dpo'} {rate} {seed}"  # robust DPO at rate 0 is DPO
        if key not in self.results["accuracy"]:
            loss = [f"trainer.args.loss_type={'robust' if told else 'sigmoid'}", f"trainer.args.label_smoothing={told}"]
            path, _ = run(
                [
                    *self.common(self.pairs, rate, seed),
                    *(*loss, "probe=none", f"trainer.args.seed={seed}", f"trainer.args.num_train_epochs={self.epochs}"),
                    *("trainer.args.learning_rate=1e-3", "trainer.args.per_device_train_batch_size=32"),
                    *("trainer.args.per_device_eval_batch_size=64", "trainer.args.bf16=false", "peft=none"),
                    *("trainer.args.eval_on_start=false", "trainer.args.save_strategy=no", "model.dtype=float32"),
                    *("trainer.args.gradient_checkpointing=false", "trainer.args.max_length=128"),
                ]
            )
            metrics = json.loads((path / "run.json").read_text())["metrics"]
            self.keep("accuracy", key, metrics["eval_rewards/accuracies"])
        return self.results["accuracy"][key]


def table(study: Study, seeds: Sequence[int]) -> str:
    """Held-out accuracy by rate and method, mean and standard deviation over the seeds, beside what the doctor says."""
    sizes = [study.results["pairs"], study.results["many"]]
    head = ["flipped", *(f"the doctor, {size:,} pairs" for size in sizes), *METHODS.values()]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for rate in RATES:
        cells = [f"{rate:.0%}"]
        cells += [estimate([study.doctor(size, rate, seed) for seed in seeds]) for size in sizes]
        for method in METHODS:
            cells.append(spread([study.accuracy(method, rate, seed) for seed in seeds], study.results["held_out"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], pairs: int) -> str:
    """Mean and standard deviation over seeds; of one seed the 95% interval over its held-out pairs."""
    if len(values) > 1:
        return f"{fmean(values):.3f} ± {stdev(values):.3f}"
    low, high = of_one(values[0], pairs)
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def of_one(accuracy: float, pairs: int) -> tuple[float, float]:
    from posttrain.probe.intervals import wilson

    return wilson(round(accuracy * pairs), pairs)


def estimate(found: Sequence[dict[str, Any]]) -> str:
    """What the doctor says of the seeds, once if the same: a rate, a bound, or nothing, as `doctor.noise` does."""
    from posttrain.doctor.noise import ACCURACY, WEAK

    said = []
    for one in found:
        if one["accuracy"] < WEAK:
            said.append("nothing")
        elif one["accuracy"] < ACCURACY or not one["steady"]:
            said.append(f"at most {one['rate']:.0%}")
        else:
            said.append(f"{one['rate']:.1%} [{one['low']:.1%}, {one['high']:.1%}]")
    return ", ".join(said if len(set(said)) > 1 else said[:1])


def draw(study: Study, seeds: Sequence[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (method, label), colour, marker in zip(METHODS.items(), ("#0072B2", "#D55E00"), "s^", strict=True):
        found = [[study.accuracy(method, rate, seed) for seed in seeds] for rate in RATES]
        means = [fmean(values) for values in found]
        ends = [of_one(mean, study.results["held_out"]) for mean in means]
        one_seed = [[mean - low for mean, (low, _) in zip(means, ends, strict=True)]]
        one_seed += [[high - mean for mean, (_, high) in zip(means, ends, strict=True)]]
        error = [stdev(values) for values in found] if len(seeds) > 1 else one_seed
        axes.errorbar(
            [rate + SHIFT[method] for rate in RATES], means, error, label=label, color=colour, marker=marker, capsize=3
        )
    axes.axhline(0.5, color="#777777", linestyle=":", label="chance")
    axes.set(xlabel="share of training pairs flipped", ylabel="held-out accuracy (clean pairs)")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--many", type=int, default=8000, help="pairs that the doctor reads, too")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "noise")
    parser.add_argument("--docs", action="store_true", help="fill docs/studies/noise.md")
    given = parser.parse_args(arguments)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    study = Study(given.out, given.pairs, given.held_out, given.epochs, given.many)
    for seed in seeds:  # a whole table with one seed first
        for rate in RATES:
            for method in METHODS:
                study.accuracy(method, rate, seed)
            for size in (given.pairs, given.many):
                study.doctor(size, rate, seed)
    made = table(study, seeds)
    draw(study, seeds, given.out / "noise.png")
    print(made)
    if given.docs:
        draw(study, seeds, PICTURE)
        pages.fill(PAGE, "noise", made)


if __name__ == "__main__":
    main()
