"""The tables of docs/performance.md and docs/memory.md, from the results of `benchmarks/gpu.py`.

    python benchmarks/gpu_tables.py [docs/gpu.json]

A table stands between `<!-- gpu: NAME -->` and `<!-- /gpu -->`; what stands there is replaced. What the results do not
have is shown as not measured.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "gpu.json"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "memory.md")
NONE = "not measured"
REGION = re.compile(r"(<!-- gpu: (\w+) -->\n).*?(<!-- /gpu -->)", re.DOTALL)

NAMES = {
    "sft": "SFT, `sft_llama`",
    "dpo": "DPO, `dpo_llama`",
    "reward": "reward model, `reward_llama`",
    "grpo": "GRPO, `grpo_llama`",
    "ppo": "PPO, `ppo_llama`, policy, reference, value and reward on one base",
    "ppo_separate": "PPO, the same with three bases: policy and reference, value, reward",
}

# Of Llama 3.1 8B: all weights, and those of an adapter on its linear layers for each unit of rank.
WEIGHTS, A_RANK = 8_030_261_248, 2_621_440


class Found:
    """Figures by measurement, `None` where there are none."""

    def __init__(self, results: dict[str, Any]):
        self.results = results
        self.measurements = results.get("measurements", {})

    def __call__(self, name: str, key: str | None = None) -> Any:
        figures = self.measurements.get(name, {}).get("figures")
        return figures if key is None or figures is None else figures.get(key)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines) + "\n"


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def source(found: Found) -> str:
    """Where the figures come from."""
    if not found.measurements:
        return "No GPU has run `make gpu` yet: what stands in these tables until then is `not measured`.\n"
    about = found.results
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"`make gpu`, {about['date']}, one {about['card']} of {about['memory_gib']} GiB; {versions}.\n"


def gpu_tests(found: Found) -> str:
    failed = found.measurements.get("tests", {}).get("status") == "failed"
    return f"The tests marked `gpu`: {'failed' if failed else found('tests', 'summary') or NONE}.\n"


def speed(found: Found) -> str:
    rows = []
    for name in ("sft", "dpo", "reward", "grpo", "ppo", "ppo_separate"):
        size = NONE
        if name in ("sft", "dpo", "reward") and found(name):
            size = f"{found(name, 'microbatch')} x {found(name, 'tokens_a_row')} tokens read"
        elif found(name):
            size = f"{found(name, 'answers')} answers of {found(name, 'answer_tokens')} tokens"
        rows.append(
            (NAMES[name], size, number(found(name, "seconds_a_step"), 2), number(found(name, "tokens_per_second"), 0))
        )
    return table(("", "a step", "seconds", "tokens/s"), rows)


def estimated(found: Found, name: str) -> float | None:
    """GiB that the plan of this run says, from the recipe and the shape of the model."""
    if name == "ppo_separate" or not found(name):
        return None
    from gpu_model import REAL
    from transformers import LlamaConfig

    from posttrain.config import composition, parse
    from posttrain.models.hardware import Precision
    from posttrain.training import footprint
    from posttrain.training.sizes import of_config

    rows = found(name, "microbatch")
    accumulated = (found(name, "answers") or rows) // rows
    batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
    if answer := found(name, "answer_tokens"):
        batch["max_completion_length"] = answer
    if name == "ppo":
        batch |= {"num_ppo_epochs": 1, "num_mini_batches": 1}
    given = [f"trainer.args.{key}={value}" for key, value in batch.items()]
    run = parse.parse(composition.compose([f"+recipe={name}_llama", "data.eval_size=0", *given]))
    trained = run.peft.lora["r"] * A_RANK
    sizes = of_config(LlamaConfig(**REAL.llama), (WEIGHTS + trained, trained))
    length = REAL.lengths[name]
    prompt, row = (length, length + answer) if answer else (length - length // 2, length)
    card = Precision(found.results["card"], "bfloat16", True, False, "sdpa")
    return footprint.estimate(run, card, sizes, row, prompt).peak / 2**30


def memory(found: Found) -> str:
    rows = []
    for name in ("sft", "dpo", "reward", "grpo", "ppo", "ppo_separate"):
        expected = estimated(found, name)
        said = "" if expected is None else number(expected)
        most = "not limited" if name == "ppo_separate" and found(name) else largest(found(name, "by_microbatch"))
        rows.append((NAMES[name], number(found(name, "peak_gib")), said, most))
    return table(("", "peak, GiB", "estimated", "largest microbatch within 24 GB"), rows)


def largest(by_microbatch: dict[str, float | None] | None) -> str:
    """The largest microbatch that fitted, with its peak; `or more` where none was tried that did not fit."""
    if not by_microbatch:
        return NONE
    fits = {int(rows): peak for rows, peak in by_microbatch.items() if peak is not None}
    if not fits:
        return "none"
    most = max(fits)
    more = "" if None in by_microbatch.values() else " or more"
    return f"{most}{more} ({number(fits[most])} GiB)"


SHARED = {
    "shared_1b": "1B, LoRA, sdpa",
    "shared_1b_flex": "1B, LoRA, FlexAttention",
    "shared_8b": "8B, QLoRA, sdpa",
    "shared_8b_flex": "8B, QLoRA, FlexAttention",
}
CASES = {
    "dpo": "DPO",
    "dpo_equal": "DPO, equal lengths",
    "reward": "reward model",
    "grpo": "GRPO, 8 answers to a prompt",
}


def span(lengths: list[int]) -> str:
    low, high = lengths
    return str(low) if low == high else f"{low}–{high}"


def shared(found: Found) -> str:
    rows = []
    for name, model in SHARED.items():
        for row in found(name, "rows") or []:
            lengths = f"{row['rows']} x {span(row['prompt_tokens'])}, {span(row['answer_tokens'])}"
            seconds = (number(row[key], 2) for key in ("plain_seconds", "shared_seconds", "times"))
            peaks = (number(row.get(key), 1) for key in ("plain_gib", "shared_gib"))
            rows.append((model, CASES[row["case"]], lengths, *seconds, *peaks))
        if not found(name):
            rows.append((model, *(NONE,) * 7))
    head = ("model", "trainer", "prompts x tokens, answer", "plain TRL, s a step", "shared", "times as fast")
    return table((*head, "plain TRL, GiB", "shared"), rows)


def overhead(found: Found) -> str:
    rows = []
    for kind in ("sft", "dpo"):
        one = found("overhead", kind) or {}
        step, peak = (one.get(key, {}) for key in ("seconds_a_step", "peak_gib"))
        between = " to ".join(number(value, 2) for value in one.get("quartiles", ()))
        ratio = f"{number(one['ratio'], 2)} ({between})" if between else NONE
        seconds = (number(step.get(way), 4) for way in ("plain", "posttrain"))
        peaks = (number(peak.get(way), 2) for way in ("plain", "posttrain"))
        rows.append((kind.upper(), *seconds, ratio, *peaks))
    head = ("", "plain TRL, s a step", "posttrain", "ratio", "plain TRL, GiB", "posttrain")
    return table(head, rows)


def demo(found: Found) -> str:
    metrics = found("demo", "metrics") or {}
    rows = [
        ("seconds, from loading to saving", number(found("demo", "seconds"), 0)),
        ("peak, GiB", number(found("demo", "peak_gib"))),
        ("invented, after", number(metrics.get("probe/rewards/invented"), 3)),
        ("answer F1, after", number(metrics.get("probe/rewards/answer_f1"), 3)),
    ]
    return table(("`+recipe=dpo_smollm2` in bfloat16", ""), rows)


def drift(found: Found) -> str:
    rows = [
        (row["adapter_on"], row["merged_into"], row["saved_as"], *(f"{row[k]:.2g}" for k in ("mean", "largest")))
        for row in found("drift", "rows") or []
    ]
    head = ("adapter on", "merged into", "saved as", "mean KL", "largest")
    return table(head, rows or [(NONE,) * len(head)])


TABLES: dict[str, Callable[[Found], str]] = {
    "source": source,
    "tests": gpu_tests,
    "speed": speed,
    "memory": memory,
    "shared": shared,
    "overhead": overhead,
    "demo": demo,
    "drift": drift,
}


def filled(page: str, results: dict[str, Any]) -> str:
    """The page with its tables made from `results`. Raises `KeyError` for a table that there is none of."""
    found = Found(results)
    return REGION.sub(lambda match: f"{match[1]}{TABLES[match[2]](found)}{match[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="default: docs/gpu.json")
    path = parser.parse_args().results
    if not path.is_file() and path != RESULTS:
        parser.error(f"{path}: no such file")
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if results.get("rehearsal"):
        raise SystemExit(f"{path}: a rehearsal on a CPU; its figures say nothing of a GPU")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(f"{', '.join(page.name for page in PAGES)}: {'filled from ' + str(path) if results else NONE}")


if __name__ == "__main__":
    main()
