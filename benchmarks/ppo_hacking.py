"""The picture of reward hacking in docs/ppo.md: the recipe at three strengths of the KL penalty.

    python benchmarks/ppo_hacking.py [docs/images/ppo_hacking.png]

Runs `ppo_hacking` three times (some 15 seconds each on a CPU), or takes the finished runs from outputs/.
"""

import json
import subprocess
import sys
from pathlib import Path

BETAS = (0.0001, 0.05, 0.2)
# metric: title
PANELS = {
    "rewards/words/mean": "words per answer (the reward)",
    "objective/kl": "KL to the reference (nats per answer)",
    "entropy": "entropy (nats per token)",
}


def rows(beta: float) -> list[dict[str, float]]:
    name = f"hacking_beta_{beta}"
    command = [sys.executable, "-m", "posttrain", "+recipe=ppo_hacking", "tracking=none", f"name={name}"]
    subprocess.run([*command, f"trainer.args.beta={beta}"], check=True, stdout=subprocess.DEVNULL)
    newest = max(Path("outputs").glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    return [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]


def main(target: str = "docs/images/ppo_hacking.png") -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.2))
    for beta in BETAS:
        logged = rows(beta)
        ends = []
        for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
            points = [(row["step"], row[metric]) for row in logged if metric in row]
            ends.append(f"{title} {points[0][1]:.2f} to {points[-1][1]:.2f}")
            axis.plot(*zip(*points, strict=True), lw=1.4, label=f"beta = {beta:g}")
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("optimizer step", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.25)
        print(f"beta {beta:g}: {', '.join(ends)}")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
