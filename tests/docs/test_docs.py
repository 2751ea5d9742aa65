"""Every command in a code block of README and docs is run here: composed, parsed and checked on stand-in files.

One module for all pages. Training commands are composed and checked as the command line would, without weights; other
commands are given to the parser of their module; make targets must exist. Links must lead somewhere.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain import __main__
from posttrain.config.commands import COMMANDS
from tests.helpers.runs import write_pairs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Programs of others that pages name; what is behind them is not ours to run.
OTHERS = (
    "source",
    "pip",
    "wandb",
    "trackio",
    "tensorboard",
    "accelerate",
    "export",
    "vllm",
    "mlflow",
    "cd",
    "git",
    "hf",
)
OTHERS += (
    "curl",
    "ssh",
    "docker",
    "llama-server",
    "ollama",
    "eval",
    "nohup",
    "unset",
    "huggingface-cli",
    "CUDA_VISIBLE_DEVICES",
)
SETTING = re.compile(r"^[+~]?['\"]?[+~]?[a-z_/]+(\.[\w/]+)*=")
# What stands in a command for something of the reader's.
STAND_INS = {
    "RUN2": "outputs/run",
    "RUN": "outputs/run",
    "RUN_A": "outputs/run",
    "RUN_B": "outputs/run",
    "DATA": "pairs.jsonl",
}


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks that are commands or settings, comments and continuations taken care of."""
    found = []
    for language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in ("", "bash", "sh", "console"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            line = line.strip()
            with contextlib.suppress(ValueError):  # no shell: a sample of output
                words = shlex.split(line, comments=True)
                if not words or words[0].endswith(":"):  # a message
                    continue
                if words[0] in (*COMMANDS, *OTHERS, "posttrain", "make", "echo", "python") or SETTING.match(line):
                    found.append(line)
    return found


ALL = sorted({(str(page.relative_to(ROOT)), line) for page in PAGES for line in commands(page)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: files and a finished run under the names that the pages use."""
    here = tmp_path_factory.mktemp("docs")
    write_pairs(here / "pairs.jsonl", 6)
    for name in (
        "prefs",
        "rows",
        "train",
        "test",
        "chats",
        "thumbs",
        "math",
        "mine",
        "prompts",
        "extra",
        "good",
        "a",
        "b",
    ):
        shutil.copy(here / "pairs.jsonl", here / f"{name}.jsonl")
    (here / "rows.csv").write_text("question,best,worst\nq,a,b\nr,c,d\n")
    (here / "my_rewards.py").write_text(
        "def brevity(completions, **kw): return [0.0] * len(completions)\ngold = mood = brevity\n"
    )
    (here / "mypackage").mkdir()
    (here / "mypackage" / "__init__.py").touch()
    (here / "mypackage" / "trainers.py").write_text(
        "from dataclasses import dataclass\n\nfrom trl import DPOConfig, DPOTrainer\n\n\n"
        "@dataclass\nclass BoldDPOConfig(DPOConfig):\n    boldness: int = 1\n\n\n"
        "class BoldDPOTrainer(DPOTrainer):\n    def __init__(self, model, args: BoldDPOConfig, **others):\n"
        "        super().__init__(model, args=args, **others)\n"
    )
    run = here / "outputs" / "run"
    (run / "model").mkdir(parents=True)
    (run / "run.json").write_text(
        json.dumps({"status": "finished", "trainer": "dpo", "model": {"path": "embedded:tiny"}})
    )
    return here


@pytest.mark.parametrize(("page", "line"), ALL)
def test_a_command_of_a_page_runs(page, line, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    first = line.split("|")[-1].strip() if line.startswith("echo") else line
    words = [STAND_INS.get(word, word) for word in shlex.split(first, comments=True)]
    words = words[: words.index(">")] if ">" in words else words
    if words[:3] == ["accelerate", "launch", "-m"] or "posttrain" in words[:6]:
        words = words[words.index("posttrain") :]
    if SETTING.match(line) and words[0] not in COMMANDS:
        data = [] if any(word.startswith("data.path=") for word in words) else ["data.path=pairs.jsonl"]
        words = ["posttrain", "trainer=dpo", "model=tiny", *data, *words]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in {name for target in targets for name in target.split()}
    elif words[0] == "python":
        assert not words[1].startswith(("benchmarks/", "tests/")) or (ROOT / words[1]).is_file(), "no such script"
    elif words[0] == "posttrain":
        check(words[1:])
    else:
        assert words[0] in OTHERS


def check(argv: list[str]) -> None:
    """Compose and parse what would train; parse the rest by its own parser."""
    argv = [STAND_INS.get(word, re.sub(r"=RUN2?$|=FOLDER$", "=outputs/run", word)) for word in argv]
    name = argv[0] if argv and argv[0] in COMMANDS else ""
    where = COMMANDS[name or "train"][1]
    if {"--help", "-h", "--version"} & set(argv) or name in ("recipes", "completion"):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert __main__.main(argv) == 0
        assert said.getvalue()
        return
    if not where.startswith("job:"):
        import importlib

        importlib.import_module(where).parser().parse_intermixed_args(argv[1:])
        return
    from posttrain.config import composition, objective, options, parse, trainers

    job = where.removeprefix("job:")
    given = [word for word in argv[1 if name else 0 :] if word not in ("-m", "--multirun", "--cfg", "job")]
    given = [word for word in given if word != "..." and not word.lstrip("+").startswith("hydra.")]
    given = [word for word in given if not word.startswith(("hydra/sweeper=optuna", "hydra/launcher="))]
    if "-m" in argv or "--multirun" in argv:
        given = [_first(word) for word in given]
    if not any(word.startswith(("+recipe=", "trainer=", "job=pipeline")) for word in given):
        given = ["trainer=dpo", "model=tiny", "data.path=pairs.jsonl", *given]
    given = [word.replace("+recipe=mine", "+recipe=rlhf_smollm2") for word in given]
    run = parse.parse(composition.compose([*given, *([f"job={job}"] if job else [])]))
    if run.job != "pipeline":
        assert objective.unmeasured(run) == []
        assert options.check(trainers.of(run.trainer.kind).config, run.trainer.args, "trainer.args") == []
        assert options.check("LoraConfig", run.peft.lora, "peft.lora") == []


def _first(word: str) -> str:
    """The first value of a swept setting."""
    key, _, value = word.partition("=")
    if value.startswith(("interval(", "tag(")):
        return f"{key}=0.1"
    return word if value.startswith(("[", "{", "'")) else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto")):
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), f"{target}: no such file"
        if anchor and to.suffix == ".md":
            assert anchor in anchors(to), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M), re.M
    )
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def test_the_memory_table_is_what_its_command_prints():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/memory.py"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"({name})" in index, f"docs/README.md does not name {name}"


def test_the_readme_names_every_recipe():
    text = (ROOT / "README.md").read_text(encoding="utf-8") + "".join(p.read_text(encoding="utf-8") for p in PAGES[1:])
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert recipe.stem in text, f"no page names {recipe.stem}"
