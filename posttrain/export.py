"""`posttrain export RUN`: what a run has trained, ready to use elsewhere.

Without `--merge` an adapter stays an adapter; with it the adapter is merged into the weights that it was trained
against, and the result is measured against the original.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.suggestions import near_path
from posttrain.console import print_error, print_plain, quiet_libraries, show_status
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from posttrain.runs.lineage import Source


MEMORY = (
    "nothing was written; --dtype bfloat16 takes half of float32, and CUDA_VISIBLE_DEVICES= merges on the CPU "
    "(one model is in memory at a time)"
)


def home_path(path: str) -> Path:
    """`path` with `~` as the home folder, which no shell expands in `--out=~/x`."""
    return Path(os.path.expanduser(path))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="posttrain export", description=__doc__.split("\n\n")[0].split(": ", 1)[1].capitalize()
    )
    parser.add_argument("run", metavar="RUN", help="a finished run directory, or a folder with an adapter")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the base, and verify it")
    parser.add_argument("--out", metavar="FOLDER", type=home_path, help="default: RUN/export, with --merge RUN/merged")
    types = ("float32", "bfloat16", "float16")
    parser.add_argument(
        "--dtype", choices=types, help="type of the merged weights (default: the type of the run's base)"
    )
    parser.add_argument(
        "--max-kl",
        metavar="X",
        type=float,
        help="largest mean KL(adapter || merged) in nats per position (default 0.02); of a reward model's merge the "
        "largest mean difference of scores (default 0.1)",
    )
    parser.add_argument(
        "--into",
        choices=("trained", "original"),
        help="for a 4-bit run: merge into its dequantized weights (default), or the original, which it never saw",
    )
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the folder; needs `hf auth login`")
    parser.add_argument("--private", action="store_true", help="make the hub repository a private one")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        export(args)
    except PosttrainError as error:
        print_error(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a name that is too long, a folder below a file, a full or read-only disk
        print_error(f"{error.filename or args.run}: {error.strerror or error}; choose another place")
        return 1
    return 0


def export(args: argparse.Namespace) -> None:
    """Check, export, say what came of it, push."""
    if not Path(args.run).expanduser().is_dir():
        raise PosttrainError(f"RUN={args.run}: no such run directory or folder{near_path(args.run)}")
    quiet_libraries()
    from posttrain.runs import card, lineage
    from posttrain.training.out_of_memory import explain_memory_errors

    source = lineage.source(args.run)
    scores = source.scores
    check(args, source)
    folder = args.out or Path(args.run).expanduser() / ("merged" if args.merge else "export")
    before = folder.is_dir() and any(folder.iterdir())
    if args.merge:
        from posttrain.models.merge import merge

        with show_status("Merging and measuring"), explain_memory_errors(MEMORY, "the merge"):
            drift = merge(source, folder, args.dtype, None, args.max_kl, args.into or "trained")
        for line in drift.describe():
            print_plain(line)
    else:
        plain(source, folder)
        if source.adapter and (note := card.base_note(source.base_name)):
            print_plain(note)
    form = "merged" if args.merge else "adapter" if source.adapter else "model"
    print_plain(f"{form:8} {folder}{' (was there already)' if before else ''}")
    if args.push_to_hub:
        url = push(folder, args.push_to_hub, args.private, source.name)
        print_plain(f"hub      {url}")
    if not scores:
        print_plain(f"next     posttrain chat {folder}")


def check(args: argparse.Namespace, source: Source) -> None:
    """Raise `PosttrainError` with everything that is wrong, before anything heavy."""
    errors = []
    if not args.merge:
        errors += [
            f"--{name}: only for --merge" for name in ("dtype", "max-kl", "into") if vars(args)[name.replace("-", "_")]
        ]
    elif source.adapter is None:
        errors.append(f"--merge: {args.run} trained all weights, so there is nothing to merge; leave --merge out")
    elif args.into and not source.quantization:
        errors.append("--into: the base was not quantized, so trained and original weights are the same")
    if args.max_kl is not None and not args.max_kl > 0:
        errors.append(f"--max-kl={args.max_kl}: expected a number above 0")
    if source.run is None and not args.out:
        errors.append(f"--out: needed, since {args.run} is no run directory")
    if args.out is not None and args.out.name in ("", ".."):
        errors.append(f"--out={args.out}: expected a new folder, by its name")
    if args.private and not args.push_to_hub:
        errors.append("--private: only for --push-to-hub")
    if args.push_to_hub:
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(args.push_to_hub)
        except HFValidationError as error:
            errors.append(f"--push-to-hub={args.push_to_hub}: {error}")
        if get_token() is None:
            errors.append("--push-to-hub: not logged in; run `hf auth login`, or set HF_TOKEN")
    if errors:
        raise PosttrainError("\n".join(errors))


def plain(source: Source, folder: Path) -> None:
    """Copy adapter or full weights into `folder`, with what is needed to use them; an equal export is left alone."""
    from posttrain.data.atomic_folder import atomic_folder, folder_lock
    from posttrain.models.merge import find_existing, identity, write_marker
    from posttrain.models.weights import saved_tokenizer
    from posttrain.runs import export_card

    wanted = {"form": "adapter" if source.adapter else "full", **identity(source)}
    with folder_lock(folder):
        if find_existing(folder, wanted):
            return
        with atomic_folder(folder) as temporary:
            weights = Path(source.adapter or source.base)
            for pattern in ("*.safetensors", "*.safetensors.index.json", "config.json"):
                for file in weights.glob(pattern):
                    shutil.copyfile(file, temporary / file.name)
            if source.adapter:
                _adapter_config(source, temporary)
            tokenizer = saved_tokenizer(source)
            tokenizer.save_pretrained(temporary)
            if not source.scores:
                _generation_config(source, tokenizer, temporary)
            write_marker(temporary, wanted)
            export_card.describe(temporary, source)


def _adapter_config(source: Source, temporary: Path) -> None:
    """Write the adapter's config with a base that other machines can find."""
    from posttrain.runs.card import hub_id

    config = json.loads((Path(str(source.adapter)) / "adapter_config.json").read_text(encoding="utf-8"))
    where = hub_id(source.base_name) or source.base_name
    config["base_model_name_or_path"] = where
    config["revision"] = source.revision if where == source.base_name else None
    (temporary / "adapter_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _generation_config(source: Source, tokenizer: Any, temporary: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    from posttrain.models.merge import set_stop_tokens

    revision = source.revision or "main"
    try:
        generation = GenerationConfig.from_pretrained(source.base, revision=revision)
    except OSError:  # a base without one
        known = AutoConfig.from_pretrained(source.base, revision=revision, trust_remote_code=False)
        generation = GenerationConfig.from_model_config(known)
    set_stop_tokens(generation, tokenizer)
    generation.to_json_file(temporary / "generation_config.json")


def push(folder: Path, name: str, private: bool, run: str) -> str:
    """Upload `folder` as one commit on the hub's model `name`; returns its address."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    api = HfApi()
    try:
        if private and api.repo_exists(name) and not api.model_info(name).private:
            raise PosttrainError(
                f"--private: {name} exists and is public; change that on its page, or take another name"
            )
        url = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=f"posttrain.export of {Path(run).name}"
        )
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise PosttrainError(
            f"--push-to-hub={name}: {first_line(error)}; the export stays in {folder}, and the same command "
            "tries the upload again"
        ) from error
    return str(url)


if __name__ == "__main__":
    sys.exit(main())
