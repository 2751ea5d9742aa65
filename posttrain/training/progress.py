"""Progress of a training: a live bar on a terminal, some lines in a log file."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from posttrain.console import call_while_slow, console, print_plain
from posttrain.runs.metrics import without_tie

if TYPE_CHECKING:
    from rich.progress import Progress

# Metrics on the bar, in this order: trainer metric -> short name.
FIGURE_NAMES = {
    "loss": "loss",
    "reward": "reward",
    "rewards/margins": "margin",
    "rewards/accuracies": "acc",
    "accuracy": "acc",
    "objective/kl": "kl",
    "kl": "kl",
    "mean_token_accuracy": "token acc",
}


# The bar of a run, while it is shown.
shown_bars: list[Progress] = []


class ProgressBar(TrainerCallback):
    """Steps, loss, reward, KL, tokens per second and time left. Off a terminal: about twenty lines in all."""

    def __init__(self, label: str):
        self.label = label
        self.bar: Progress | None = None
        self.task: Any = None
        self.latest: dict[str, float] = {}
        self.started: tuple[float, int, float] | None = None  # time, step, tokens at the first step from here
        self.printed = 0.0
        self.phase: Phase | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.started = None
        self.printed = time.monotonic()
        if console.is_terminal:
            from posttrain.training import terminal_bar

            self.bar, self.task = terminal_bar.started_bar(console, self.label, state)
            shown_bars.append(self.bar)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The clock starts at the first step: measurements before it are no training time.
        if self.started is None:
            # `num_tokens` includes the tokens before a resume; the speed is that of this process.
            logged = (row["num_tokens"] for row in reversed(state.log_history) if "num_tokens" in row)
            tokens = next(logged, state.num_input_tokens_seen or 0)
            self.started = (time.monotonic(), state.global_step, float(tokens))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs or self.started is None:
            return
        self.latest.update({k: v for k, v in without_tie(logs).items() if isinstance(v, (int, float))})
        figures = self._figures(state)
        if self.bar is not None:
            self.bar.update(self.task, figures=figures)
        elif not any(k.startswith("eval_") for k in logs) and self._due(state):
            left = self._left(state)
            console.print(f"{self.label} {state.global_step}/{state.max_steps}  {figures}  {left} left")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            shown_bars.remove(self.bar)
            self.bar = None

    def show_evaluations(self, trainer: Any) -> None:
        """Show evaluations of `trainer`, too."""
        evaluate = trainer.evaluation_loop

        def shown(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
            batches = len(dataloader) if has_length(dataloader) else 1
            with Phase("eval     the held-out rows", batches) as self.phase:
                return evaluate(dataloader, *args, **kwargs)

        trainer.evaluation_loop = shown

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.phase is not None:
            self.phase.advance()

    def _due(self, state: Any) -> bool:
        """A line at each twentieth of the steps, and at least one a minute."""
        every, now = max(state.max_steps // 20, 1), time.monotonic()
        if state.global_step % every < max(state.logging_steps, 1) or now - self.printed > 60:
            self.printed = now
            return True
        return False

    def _figures(self, state: Any) -> str:
        assert self.started is not None
        # PPO logs its KL per answer and per token; of keys with the same short name, the first one counts.
        values = {name: self.latest[key] for key, name in reversed(FIGURE_NAMES.items()) if key in self.latest}
        parts = [f"{name} {values[name]:.3g}" for name in dict.fromkeys(FIGURE_NAMES.values()) if name in values]
        tokens = self.latest.get("num_tokens", float(state.num_input_tokens_seen or 0)) - self.started[2]
        seconds = time.monotonic() - self.started[0]
        if tokens > 0 and seconds > 0:
            parts.append(f"{tokens / seconds:.0f} tokens/s")
        if self.bar is not None:
            from posttrain.training import terminal_bar

            return terminal_bar.figures(console, parts)
        return "  ".join(parts)

    def _left(self, state: Any) -> str:
        assert self.started is not None
        done = state.global_step - self.started[1]
        return duration((time.monotonic() - self.started[0]) / max(done, 1) * (state.max_steps - state.global_step))


class Phase:
    """Work in `total` parts: a bar on a terminal; in a log file one line with the time left, if it takes long."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done = label, total, 0
        self.started = time.monotonic()
        self.stack = ExitStack()

    def __enter__(self) -> Phase:
        if console.is_terminal:
            from posttrain.training import terminal_bar

            self.bar, self.task = terminal_bar.phase_bar(console, self, shown_bars)
        else:
            self.stack.enter_context(call_while_slow(self._report))
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def advance(self, count: int = 1) -> None:
        self.done += count
        if console.is_terminal:
            self.bar.update(self.task, completed=self.done)

    def _report(self) -> None:
        each = (time.monotonic() - self.started) / max(self.done, 1)
        left = f", about {duration(each * (self.total - self.done))} left" if self.done else ""
        print_plain(f"{self.label} ...{left}")


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
