"""An installed wheel carries conf/ and recipes/, and works from anywhere as `posttrain`."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.runs import ENVIRONMENT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the built wheel unpacked into it, as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("posttrain-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site, *args):
    code = "import sys; from posttrain.__main__ import main; sys.argv[0] = 'posttrain'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_wheel_has_recipes_and_groups(site):
    names = {p.name for p in (ROOT / "recipes").glob("*.yaml")}
    assert {p.name for p in (site / "posttrain/recipes").glob("*.yaml")} == names
    templates = {p.relative_to(ROOT) for p in (ROOT / "posttrain").rglob("*.jinja")}
    assert {p.relative_to(site) for p in (site / "posttrain").rglob("*.jinja")} == templates
    assert (site / "posttrain/conf/config.yaml").is_file()
    pages = {p.name for p in (site / "posttrain/annotate/page").iterdir()}
    assert pages == {"index.html", "app.js", "style.css", "icon.svg"}
    assert "entry_points.txt" in {p.name for p in site.rglob("*.txt")}


def test_the_wheel_composes_and_rejects(site):
    done = run(site, "+recipe=dpo_smollm2", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "kind: dpo" in done.stdout
    done = run(site, "+recipe=dpo_smollm2", "trainer.args.betta=1")
    assert (done.returncode, "did you mean beta?" in done.stderr) == (1, True)
