"""Why a job ended early, in one message, and how its work continues."""

import errno
import shutil
import signal
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from posttrain.console import print_plain
from posttrain.errors import PosttrainError, RewardError
from posttrain.runs.directory import RunDirectory
from posttrain.training import out_of_memory
from posttrain.training.signals import Interrupted, Signals

TRAINING_MEMORY_FIX = (
    "halve trainer.args.per_device_train_batch_size and double gradient_accumulation_steps, lower max_length, keep "
    "gradient_checkpointing=true, or take peft=qlora"
)
EVALUATION_MEMORY_FIX = "set a smaller trainer.args.per_device_eval_batch_size, or probe.batch_size"


def explain(error: Exception, directory: RunDirectory, command: str, fix: str | None) -> str | None:
    """The message for full memory, a full disk, or a failed user's reward; `None` for other errors.

    `fix` is the advice on how to need less memory, by default that of a training.
    """
    if isinstance(error, RewardError):
        return f"{error}\nFinished work is kept, and the same command resumes: {command}"
    if out_of_memory.is_out_of_memory(error):
        return out_of_memory.out_of_memory_message(error, fix or TRAINING_MEMORY_FIX)
    if not _disk_full(error, directory.path):
        return None
    last = directory.last_checkpoint()
    return (
        f"{directory.path}: No space left on device; the last whole checkpoint is {last.name if last else 'none'}. "
        "Free some space; the same command resumes from there"
    )


def explain_training(
    error: Exception, trainer: Any, directory: RunDirectory, command: str
) -> PosttrainError | SystemExit | None:
    """The error or exit to raise for an error during training.

    For a signal, full memory, and a failed reward; `None` for other errors, which `explain` may know.
    """
    if isinstance(error, Interrupted):
        return _exit_after_signal(trainer, command)
    if isinstance(error, RewardError):
        rest = _how_to_continue(trainer, trainer.save_last_step_end(), directory, command)
        return PosttrainError(f"{error}\n{rest}")
    if isinstance(error, (MemoryError, RuntimeError)) and out_of_memory.is_out_of_memory(error):
        fix = TRAINING_MEMORY_FIX if "training" in trainer.doing else EVALUATION_MEMORY_FIX
        message = out_of_memory.out_of_memory_message(error, fix, trainer.doing)
        return PosttrainError(f"{message}\n{_how_to_continue(trainer, False, directory, command)}")
    return None


def _how_to_continue(trainer: Any, saved: bool, directory: RunDirectory, command: str) -> str:
    """How the run continues once the cause of the failure is fixed."""
    last = directory.last_checkpoint()
    if last is None:
        return f"No checkpoint was saved. After the fix, this command starts again: {command}"
    kept = f"checkpoint-{trainer.state.global_step} is saved" if saved else f"The last checkpoint is {last.name}"
    return (
        f"{kept}, and the same command resumes from it: {command}\n"
        "(With a changed reward function it is another run, which starts again.)"
    )


def _exit_after_signal(trainer: Any, command: str) -> SystemExit:
    """Save, and print where a signal has ended the training and how to continue; returns the exit with its status."""
    trainer.save_last_step_end()
    trainer.accelerator.wait_for_everyone()
    interrupt: Signals = trainer.signals
    step = trainer.state.global_step
    where = f"at step {step}; a checkpoint is saved" if step else "before the first step"
    print_plain(f"Stopped by {interrupt.signal or 'a signal'} {where}. Continue with: {command}")
    return SystemExit(128 + (interrupt.number or signal.SIGTERM))


def _disk_full(error: Exception, folder: Path) -> bool:
    """Whether a write failed on a full disk; safetensors and torch raise their own errors, without an errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if not isinstance(error, (OSError, RuntimeError, SafetensorError)):
        return False
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return "No space left" in str(error) or (not isinstance(error, OSError) and shutil.disk_usage(there).free < 1 << 20)
