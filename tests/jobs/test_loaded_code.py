"""A plain run loads the code it uses, and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

from posttrain.data.embedded.tiny import tiny_model
from tests.helpers.runs import ENVIRONMENT

PLAIN = (
    "trainer=dpo",
    "model=tiny",
    "data.path=pairs.jsonl",
    "probe=none",
    "tracking=none",
    "trainer.args.max_steps=1",
)
# What DPO on local pairs without a probe has no use for.
UNUSED = ("doctor", "report", "annotate", "pipeline", "probe", "rewards", "export", "chat")
UNUSED_DATA = (
    "mix",
    "stream",
    "held_out",
    "embedded.squad",
    "embedded.imdb",
    "embedded.gym",
    "embedded.wheels",
    "embedded.smollm2",
)
# Lines of our code, comments and docstrings included: a ceiling, to be lowered.
MOST_LINES = 9200

CODE = """
import json, sys
from posttrain.__main__ import main
sys.argv = ["posttrain", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
files = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "posttrain"}
print(json.dumps(files))
"""


def test_a_plain_run_loads_no_room_it_does_not_use(pairs, tmp_path, record_property):
    tiny_model()  # a first run builds it
    done = subprocess.run(
        [sys.executable, "-c", CODE, *PLAIN],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout.splitlines()[-1])
    loaded = {name.removeprefix("posttrain.") for name in files}
    assert not [name for name in loaded if name.split(".")[0] in UNUSED]
    assert not [name for name in UNUSED_DATA if f"data.{name}" in loaded]
    lines = sum(len(Path(file).read_text(encoding="utf-8").splitlines()) for file in files.values())
    print(f"{lines} lines in {len(files)} files")
    record_property("lines", lines)
    assert lines <= MOST_LINES
