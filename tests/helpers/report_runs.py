"""Run folders as runs leave them, written by hand: what `posttrain.report` reads."""

import json
from pathlib import Path
from typing import Any

import yaml

PROMPTS = [f"user: Question {i}?" for i in range(4)]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>&\" --> $\\frac{"


def write_run(
    folder: Path,
    kind: str,
    points: list[tuple[int, float, float]],
    *,
    seed: int = 1,
    args: dict[str, Any] | None = None,
    status: str = "finished",
    said: str = "fine",
    spread: tuple[float, ...] = (-0.3, -0.1, 0.1, 0.3),
    parent: str | None = "sft-0",
    more: dict[str, Any] | None = None,
    **record: Any,
) -> Path:
    """A training run. `points`: (step, KL, gold); the proxy is twice the gold; `spread` is over prompts.

    `more` are settings beside those of the trainer.
    """
    folder.mkdir(parents=True)
    config = {
        "job": "train",
        "trainer": {"kind": kind, "args": {**(args or {}), "seed": seed}},
        "model": {"path": "embedded:tiny", "init_from": parent and f"outputs/{parent}"},
        "name": folder.name,
        **(more or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    origin = {"role": "policy", "path": config["model"]["init_from"], "name": parent, "content": f"digest of {parent}"}
    parents = [origin] if parent else []
    written = {"status": status, "trainer": kind, "seed": seed, "parents": parents, "command": f"run {folder.name}"}
    written["model"] = {"path": "embedded:tiny", "revision": None}
    (folder / "run.json").write_text(json.dumps({**written, **record}))
    rows: list[dict[str, Any]] = []
    for step, kl, gold in points:
        probe = {"probe/kl": kl, "probe/kl_stderr": 0.1, "probe/gold/mood": gold, "probe/rewards/rm": 2 * gold}
        modes = {"probe/length": 10 + kl, "probe/self_bleu": 0.1, "probe/seconds": 9.0, "probe/gold_stderr/mood": 0.05}
        rows += [{"step": step, **probe, **modes}, {"step": step, "loss": 1.0 / (1 + step)}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"step": step, "prompt": p, "completion": f"{said} {step}", "gold/mood": gold + s, "rm": 2 * gold}
        for step, _, gold in points
        for p, s in zip(PROMPTS, spread, strict=True)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder


def write_held_out(
    folder: Path, kind: str, values: dict[str, tuple[float, float]], rows: int = 100, **more: Any
) -> Path:
    """A training run without a reward: held-out metrics as (before, after), measured on `rows` rows."""
    data = {"path": "pairs.jsonl", "held_out": "split off", "held_out_rows": rows, "fingerprint": "f"}
    write_run(folder, kind, [], parent=None, data=data, **more)
    points = [{"step": step, **{m: v[i] for m, v in values.items()}} for i, step in enumerate((0, 10))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
    return folder


def write_sample(
    folder: Path, rewards: dict[str, list[float | None]], n: int, parent: str = "sft-0", **sample: Any
) -> Path:
    """A run of job=sample: `n` completions for each prompt, one after another, chosen by `rm`; `mood` has no weight."""
    folder.mkdir(parents=True)
    weights = {"rm": {"weight": 1.0}, "mood": {"weight": 0.0}}
    config = {
        "job": "sample",
        "trainer": {"kind": "ppo"},
        "model": {"path": "embedded:tiny", "init_from": f"outputs/{parent}"},
        "sample": {"n": n, "select": "all", "split": "eval", "temperature": 1.0, "top_p": 1.0, **sample},
        "reward": {name: weights[name] for name in rewards},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = {"status": "finished", "job": "sample", "trainer": "ppo", "metrics": {"score": 0.5, "kept": 8}}
    record["parents"] = [{"role": "policy", "name": parent, "content": f"digest of {parent}"}]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "rewards.jsonl").write_text(json.dumps({"batch": 0, "rewards": rewards}) + "\n")
    return folder


def write_all(outputs: Path) -> Path:
    """Runs of every method, an unfinished one, a crashed one, an evaluated one, a sampled set, and a foreign folder."""
    for seed, gold in ((1, 0.50), (2, 0.52)):
        path = [(0, 0.0, 0.1), (5, 1.0, 0.4), (10, 2.0, gold)]
        write_run(outputs / f"dpo-{seed}", "dpo", path, seed=seed, args={"beta": 0.1}, said=HOSTILE)
    write_run(outputs / "dpo-low", "dpo", [(0, 0.0, 0.1), (5, 4.0, 0.7), (10, 9.0, 0.6)], args={"beta": 0.01})
    overoptimised = {"name": "overoptimisation", "step": 10, "message": f"proxy up, gold down {HOSTILE}"}
    for i, kind in enumerate(("sft", "kto", "ppo", "grpo", "rloo")):
        path = [(0, 0.0, 0.1), (5, 1.0 + i, 0.3), (10, 3.0 + i, 0.35 + i / 100)]
        write_run(
            outputs / f"{kind}-1", kind, path, args={"beta": 0.1}, alarms=[overoptimised] if kind == "ppo" else []
        )
    write_run(outputs / "reward-1", "reward", [], parent=None)
    write_run(outputs / "ppo-crashed", "ppo", [(0, 0.0, 0.1), (5, 2.0, 0.9)], args={"beta": 0.2}, status="running")
    with (outputs / "ppo-crashed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "probe/kl": NaN, "loss": Infinity}\n{"step": 7, "probe/k')
    write_run(outputs / "rloo-new", "rloo", [], args={"beta": 0.9}, status="running")
    write_sample(outputs / "drawn-1", {"rm": [1, 2, 3, 4, 4, 3, 2, 1], "mood": [0, 0, 0, 1, 1, 0, 0, 0]}, 4)
    evaluated = write_sample(outputs / "evaluated-1", {"rm": [1.0, 2.0]}, 2)
    record = {"status": "finished", "job": "evaluate", "trainer": "dpo", "metrics": {"sampled/win_rate": 0.75}}
    record |= {"intervals": {"sampled/win_rate": [0.5, 0.9]}, "model": {"path": "outputs/dpo-1"}}
    (evaluated / "run.json").write_text(json.dumps(record))
    (outputs / "holiday").mkdir()
    (outputs / "holiday" / "photo.txt").write_text("sea")
    (outputs / "other").mkdir()
    (outputs / "other" / "run.json").write_text("[1, 2]")
    (outputs / "third").mkdir()
    (outputs / "third" / "run.json").write_text('{"status": "finished", "model": "gpt2", "trainer": 7}')
    (outputs / "third" / "config.yaml").write_text("a: 1")
    return outputs
