"""`job=pipeline`: recipes one after another, each in its own process; finished stages are reused.

    stages.py      the stages as written: names, parents, gates, rounds, order
    overrides.py   a stage's settings as a command line, and the `Run` that this command line gives
    plan.py        what of it is finished, interrupted, new or changed, and why
    process.py     one stage's process: its output, its log, signals
    table.py       what the stages changed on the held-out task

`posttrain.jobs.pipeline` runs it. Nothing here imports torch.
"""
