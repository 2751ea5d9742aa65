"""Examine the data of a run: a report in the terminal, `doctor.json`, and `doctor.html` for a browser.

It examines what a training would get: the same loading, split, columns, tokenizer and preparation. No weights are
loaded, so a machine without room for them is enough.
"""

from __future__ import annotations

import importlib.util
import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from posttrain import extras
from posttrain.config.schema import Origin, Run
from posttrain.console import console, quiet_libraries
from posttrain.doctor.plan import Plan
from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory
from posttrain.runs.durable import write_atomic, write_json

if TYPE_CHECKING:
    from posttrain.doctor.examine import Report

# The version of doctor.json.
SCHEMA_VERSION = 1
# Switch -> the modules that it needs.
PACKAGES = {"duplicates": ("rensa", "scipy"), "language": ("py3langid", "ftfy"), "noise": ("sklearn", "scipy")}


def doctor(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Examine the data, or show an earlier report; raises `PosttrainError` for findings as bad as `doctor.fail_on`."""
    _check_installed(run)
    from posttrain.doctor import terminal
    from posttrain.jobs import common

    quiet_libraries()
    value = common.run_once(run, origin, prepare, _doctor, terminal)
    if not run.dry_run:
        _verdict(run, RunDirectory.of(run, origin))
    return value


def prepare(run: Run) -> Plan:
    """Tokenizer and rows, found as training finds them; raises `PosttrainError` as it would."""
    from posttrain.jobs import train_plan

    _, tokenizer, _, rendering, data = train_plan.inputs(run)
    return Plan(tokenizer, data, rendering.notes())


def _check_installed(run: Run) -> None:
    missing = {
        name: switch
        for switch, names in PACKAGES.items()
        if getattr(run.doctor, switch)
        for name in names
        if importlib.util.find_spec(name) is None
    }
    if missing:
        switches = " ".join(f"doctor.{switch}=false" for switch in dict.fromkeys(missing.values()))
        raise PosttrainError(
            f"job=doctor: {', '.join(missing)} not installed; {extras.install_command('doctor')}, or leave these "
            f"checks out: {switches}"
        )


def _doctor(run: Run, origin: Origin, plan: Plan, directory: RunDirectory) -> None:
    from posttrain.doctor import page
    from posttrain.doctor.examine import examine
    from posttrain.jobs import common

    common.write_start(run, origin, directory, [common.model_source(run)], plan.data.source)
    began = time.monotonic()
    with console.status("") if console.is_terminal else nullcontext() as status:
        say = status.update if status is not None else (lambda what: None)
        report = examine(run, plan.tokenizer, plan.data, say, plan.notes)
    record = document(run, plan.data.source, report, directory.name, origin.command)
    write_json(directory.path / "doctor.json", record)
    write_atomic(directory.path / "doctor.html", page.render(record))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in report.doubtful]
    write_atomic(directory.path / "doubtful.jsonl", "".join(lines))
    seconds = round(time.monotonic() - began, 1)
    # With a bad verdict the run is not finished, or a pipeline that is started again would take it for passed.
    verdict = "failed" if _bad(run, record) else "finished"
    common.write_end(directory, metrics=metrics(report), doctor=asdict(run.doctor), seconds=seconds, status=verdict)


def document(run: Run, data: dict[str, Any], report: Report, name: str, command: str) -> dict[str, Any]:
    """The content of `doctor.json`; later versions add keys, and remove or rename none."""
    return {
        "schema": SCHEMA_VERSION,
        "name": name,
        "command": command,
        "trainer": run.trainer.kind,
        "model": run.model.path,
        "data": data,
        "settings": asdict(run.doctor),
        "counts": {severity: report.count(severity) for severity in ("error", "warning", "info")},
        # `mend` is an older name of `fix`.
        "findings": [{**asdict(one), "mend": one.fix} for one in report.findings],
        "sequences": [asdict(one) for one in report.shown],
        "doubtful_rows": len(report.doubtful),
    }


def metrics(report: Report) -> dict[str, float]:
    """For gates and sweeps: `errors`, `warnings`, and each number as FINDING/NUMBER."""
    found: dict[str, float] = {"errors": report.count("error"), "warnings": report.count("warning")}
    for one in report.findings:
        found |= {f"{one.name}/{key.replace(' ', '_')}": float(value) for key, value in one.numbers.items()}
    return found


def _verdict(run: Run, directory: RunDirectory) -> None:
    """Raise `PosttrainError` if findings are as bad as `doctor.fail_on`, so that `make` and shells stop."""
    known = json.loads((directory.path / "doctor.json").read_text(encoding="utf-8"))
    if names := _bad(run, known):
        raise PosttrainError(
            f"data.path={known['data']['path']}: the doctor found {', '.join(names)}; fix the data as {directory.path}"
            "/doctor.html says, or continue with doctor.fail_on=never"
        )


def _bad(run: Run, known: dict[str, Any]) -> list[str]:
    """The findings that `doctor.fail_on` does not let pass."""
    bad = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[run.doctor.fail_on]
    return [one["name"] for one in known["findings"] if one["severity"] in bad]
