"""The demo's settings, chosen on the validation articles and reported on the test articles, each with several seeds.

    python benchmarks/demo.py                          # every setting with one seed, on validation
    python benchmarks/demo.py --settings recipe,more --seeds 1,2,3
    python benchmarks/demo.py --test recipe --seeds 1,2,3      # the chosen one, on the test articles
    python benchmarks/demo.py --docs                   # the tables of docs/studies/demo.md from what was measured

Greedy answers to `--questions` held-out questions, half of them answerable: the share of unanswerable ones that got an
answer (invented), the share of answerable ones that got none (withheld), F1 on the answerable ones, and how far F1 has
moved from the model before training, question by question, with its 95% bootstrap interval. `results.json` in `--out`
keeps every run, the bad ones too, with its command, seconds and machine; runs that are finished are used again.
"""

import argparse
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from in_process import run

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "studies" / "demo.md"
REGION = re.compile(r"(<!-- demo: (\w+) -->\n).*?(<!-- /demo -->)", re.DOTALL)
NONE = "Not run.\n"
# What each setting has otherwise than the recipe `dpo_smollm2`. `old` ones have the recipe's settings of before, with
# longer contexts, of an unanswerable question from its own paragraph; `first` ones those, with the contexts of now.
LONG = ("data.args.words=[35,60]", "data.args.missed=paragraph")
FIRST = ("data.max_train_rows=256", "trainer.args.learning_rate=3.0e-4", "trainer.args.loss_weights=[1.0,1.0]")
SETTINGS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "old": (*LONG, *FIRST),
    "first": FIRST,
    "first_384": ("trainer.args.learning_rate=3.0e-4", "trainer.args.loss_weights=[1.0,1.0]"),
    "first_384_faster": ("trainer.args.loss_weights=[1.0,1.0]",),
    "first_faster": ("data.max_train_rows=256", "trainer.args.loss_weights=[1.0,1.0]"),
    "first_fastest": (FIRST[0], "trainer.args.learning_rate=1.0e-3", FIRST[2]),
    "first_small_steps": (*FIRST, "trainer.args.per_device_train_batch_size=2"),
    "first_preference": (*FIRST[:2], "trainer.args.loss_weights=[3.0,1.0]"),
    "first_likelihood": (*FIRST[:2], "trainer.args.loss_weights=[1.0,3.0]"),
    "first_rank": (*FIRST, "peft.lora.r=64", "peft.lora.lora_alpha=128"),
    "alone": ("trainer.args.loss_type=[sigmoid]", "trainer.args.loss_weights=null"),
}
# What the demo is to reach: invented at most a third of before, withheld at most a quarter, F1 surely higher.
INVENTED, WITHHELD = 1 / 3, 0.25


class Demo:
    """Runs and measurements, kept in `results.json` as they are done. `extra`: overrides of every run.

    `training`: of those that train alone.
    """

    def __init__(self, folder: Path, questions: int, extra: Sequence[str] = (), training: Sequence[str] = ()):
        self.folder, self.questions = folder.absolute(), questions
        self.extra, self.training = list(extra), list(training)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "results.json"
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def measured(self, setting: str, seed: int, split: str) -> dict[str, Any]:
        """What a run of `setting` answers on a split, beside what the model answered before."""
        key = " ".join([setting, str(seed), split, str(self.questions), *self.extra, *self.training])
        if key not in self.results:
            # Nothing of the training depends on what is held out: one run serves both splits.
            given = ["+recipe=dpo_smollm2", *self.common("validation"), f"trainer.args.seed={seed}", "probe=none"]
            given += [*SETTINGS[setting], *self.extra, *self.training]
            path, _ = run(given)
            record = json.loads((path / "run.json").read_text())
            # Contexts are part of the question, so the model before training is asked the same.
            data = [override for override in SETTINGS[setting] if override.startswith("data.args")]
            before = self.answers(split, "model.init_from=null", *data)
            after = self.answers(split, f"model.init_from={path}", *data)
            self.results[key] = {
                "setting": setting,
                "seed": seed,
                "split": split,
                "command": record["command"],
                "seconds": record["seconds"],
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, {record['precision']}",
                **compared(before, after),
            }
            half = self.file.with_suffix(".half")
            half.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
            half.replace(self.file)
        return self.results[key]

    def common(self, split: str) -> list[str]:
        return [f"data.eval_split={split}", f"output_dir={self.folder / 'runs'}", "tracking=none"]

    def answers(self, split: str, *asked: str) -> list[dict[str, Any]]:
        """Greedy answers with their scores, a row per question."""
        given = ["+recipe=ppo_smollm2", "job=evaluate", *asked, *self.common(split), *self.extra]
        given += ["probe.prompts=0", f"probe.greedy_prompts={self.questions}", f"data.max_eval_rows={self.questions}"]
        given += ["+probe.rewards.withheld.function=posttrain.rewards.abstain.withheld", "evaluate.resamples=100"]
        path, _ = run(given)
        rows = [json.loads(line) for line in (path / "scores.jsonl").read_text().split("\n") if line]
        return [row for row in rows if row["set"] == "greedy"]


def compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures before and after, with intervals, and the paired change of F1."""
    from posttrain.probe.intervals import Metric, difference, interval, mean

    def metric(rows: Sequence[dict[str, Any]], name: str) -> Metric:
        return mean([row["rewards"][name] for row in rows], range(len(rows)))

    figures: dict[str, Any] = {}
    for name in ("invented", "withheld", "answer_f1"):
        for when, rows in (("before", before), ("after", after)):
            one = metric(rows, name)
            figures[f"{name}_{when}"] = {"value": one.value, "interval": interval(one, 0.95, 2000), "count": one.count}
    change = difference(metric(after, "answer_f1"), metric(before, "answer_f1"))
    figures["answer_f1_change"] = {"value": change.value, "interval": interval(change, 0.95, 2000)}
    return figures


def reached(found: dict[str, Any]) -> bool:
    """Whether a run does what the demo promises."""
    low = (found["answer_f1_change"]["interval"] or (0.0, 0.0))[0]
    invented = found["invented_after"]["value"] <= INVENTED * found["invented_before"]["value"]
    return bool(invented and found["withheld_after"]["value"] <= WITHHELD and low > 0)


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row per run, below one of the model before training for each kind of contexts."""
    if not results:
        return NONE
    lines = ["| setting | seed | invented | withheld | F1 | change of F1 | all three | on |", "|---|" + "---|" * 7]
    named = ""
    for one in sorted(results, key=lambda one: SETTINGS[one["setting"]][:2] != LONG):
        contexts = "long contexts" if SETTINGS[one["setting"]][:2] == LONG else "the recipe's contexts"
        if contexts != named:
            named = contexts
            before = (shown(one[f"{name}_before"]) for name in ("invented", "withheld", "answer_f1"))
            lines.append(f"| before, {contexts} | | {' | '.join(before)} | | | |")
        after = (shown(one[f"{name}_after"]) for name in ("invented", "withheld", "answer_f1"))
        cells = [f"`{one['setting']}`", one["seed"], *after, shown(one["answer_f1_change"])]
        cells += ["yes" if reached(one) else "no", "CPU" if "CPU" in one["machine"] else "GPU"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def shown(figure: dict[str, Any]) -> str:
    ends = figure["interval"]
    return f"{figure['value']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def page(text: str, results: Sequence[dict[str, Any]]) -> str:
    """The page with a table for each split, and what it was measured on."""

    def filled(match: re.Match[str]) -> str:
        if match[2] == "machine":
            machines = sorted({one["machine"] for one in results})
            return f"{match[1]}{'; '.join(machines) or 'Not run'}.\n{match[3]}"
        return f"{match[1]}{table([one for one in results if one['split'] == match[2]])}{match[3]}"

    return REGION.sub(filled, text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of those that are compared on validation")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--test", help="the setting that is reported on the test articles")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "demo")
    parser.add_argument("--docs", action="store_true", help="only fill docs/studies/demo.md")
    parser.add_argument("training", nargs="*", help="overrides of every run that trains")
    given = parser.parse_args(arguments)
    demo = Demo(given.out, given.questions, training=given.training)
    if given.docs:
        filled = page(PAGE.read_text(encoding="utf-8"), list(demo.results.values()))
        PAGE.write_text(filled, encoding="utf-8")
        return
    names, split = (given.settings.split(","), "validation") if given.test is None else ([given.test], "test")
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"no setting {unknown[0]}; there are {', '.join(SETTINGS)}")
    found = [demo.measured(name, int(seed), split) for seed in given.seeds.split(",") for name in names]
    print(table(found))


if __name__ == "__main__":
    main()
