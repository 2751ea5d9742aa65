"""Checks of names, output paths and secrets: a run writes inside `output_dir` only, and stores no secret."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.config.schema import Run

# One component of a path, with room for what is appended to it.
NAME = re.compile(r"[^\W_][\w.+-]*")
LONGEST, FILE_SYSTEM = 150, 255  # bytes: of ours, and what file systems allow
# Keys of files, folders and ids of the hub.
PLACES = ("path", "eval_path", "init_from", "chat_template", "model", "texts", "harmful", "harmless", "against")

# Parts of the names of keys that hold secrets.
SECRET = re.compile(
    r"api[_-]?key|secret|passw(or)?d|passphrase|credential|(private|access)[_-]?key|bearer|authorization", re.IGNORECASE
)
# `hf_token` holds a secret; keys for the tokens of a tokenizer, such as `eos_token`, do not.
TOKEN_KEY = re.compile(r"(?:^|.*[_-])token", re.IGNORECASE)
NOT_SECRET = re.compile(
    r"(?:add_|use_)?(?:eos|bos|pad|unk|sep|cls|mask|stop|start|end|eot|eom|eod|image|audio|video|special|sentence|word"
    r"|assistant|user|system|decoder_start|forced_\w+|response|instruction|think|tool\w*|new|first|last|next)_token",
    re.IGNORECASE,
)
# Values that are secrets whatever their key: keys of the hub, OpenAI, GitHub, GitLab, AWS, Slack; a password in a URL.
VALUE = re.compile(
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{20,}|sk-(?=[\w-]*[0-9A-Z])[\w-]{20,}|gh[pousr]_\w{30,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})"
    r"|\w+://[^/\s:@]+:[^/\s@]+@\S+"
)


def check(run: Run) -> list[str]:
    """Errors for names that are no file name or lead out of `output_dir`, and for an unusable `output_dir`."""
    errors = []
    if run.name is not None and (wrong := wrong_name(run.name)):
        errors.append(f"name={_readable(run.name)}: {wrong}")
    for path, entries in (*run.rewards.items(), ("data.mix", run.data.mix)):
        errors += [f"{path}.{_readable(name)}: {wrong}" for name in entries if (wrong := wrong_name(str(name)))]
    if wrong := _wrong_folder(run.output_dir):
        errors.append(f"output_dir={_readable(run.output_dir)}: {wrong}")
    return errors


def long_names(settings: Any) -> list[str]:
    """Errors for paths with a name that is too long for a file system; looking there would raise an `OSError`."""
    return [
        f"{path}={_readable(value)}: a name in it is longer than {FILE_SYSTEM} bytes, and no file has one"
        for path, key, value in leaves(settings, "")
        if key in PLACES and isinstance(value, str) and max(map(len, os.fsencode(value).split(b"/"))) > FILE_SYSTEM
    ]


def wrong_name(name: str) -> str | None:
    """What is wrong with a name that becomes a part of a path; None where it is right."""
    if not NAME.fullmatch(name):
        return "expected letters, digits, _, -, + and dots, with a letter or digit first"
    if len(name.encode()) > LONGEST:
        return f"longer than {LONGEST} bytes, which leaves no room in a file's name"
    return None


def _wrong_folder(path: str) -> str | None:
    if not path or not path.isprintable():
        return "expected the path of a folder"
    if "://" in path:
        return "expected a folder of this machine; copy the run when it is finished, or mount that place"
    place = Path(path).absolute()
    try:
        there = next(p for p in (place, *place.parents) if p.exists())
    except OSError as error:
        return error.strerror or "no such place"
    if not there.is_dir():
        return f"{there} is a file, and runs need a folder"
    try:  # the only answer that holds for root, and for file systems that take no folders
        os.rmdir(tempfile.mkdtemp(prefix=".posttrain-", dir=there))
    except OSError as error:
        return f"no folder can be made in {there} ({error.strerror}); choose another folder"
    return None


def _readable(text: str) -> str:
    return text if text.isprintable() and len(text) < 80 else repr(text[:80])


def secrets(settings: Any) -> list[str]:
    """Keys and values that are secrets: the config is stored in the run directory and sent to the tracker."""
    errors = []
    for path, key, value in leaves(settings, ""):
        by_key = key == "use_auth_token" or _names_secret(key, value)
        if value and (by_key or (isinstance(value, str) and VALUE.search(value))):
            of_hub = "token" in key.lower() or str(value).startswith("hf_")
            fix = "run `hf auth login`, or set HF_TOKEN in the environment" if of_hub else "put it into the environment"
            errors.append(f"{path}: a secret does not belong in a config, which is stored; {fix}")
    return errors


def _names_secret(key: str, value: Any) -> bool:
    if SECRET.search(key):
        return not isinstance(value, bool) and not key.lower().endswith(("_env", "_file", "_path"))
    # Special tokens look like <this> or [this]; a secret does not.
    is_token = TOKEN_KEY.fullmatch(key) and isinstance(value, str) and not re.fullmatch(r"[<\[].*[>\]]", value)
    return bool(is_token and not NOT_SECRET.fullmatch(key))


def leaves(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else str(name), str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path, key)
    else:
        yield path, key, value
