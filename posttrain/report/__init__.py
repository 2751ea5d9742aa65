"""Compare runs: `python -m posttrain.report PATH…` (docs/report.md).

runs.py    find run folders and read them            verdict.py  which is best, and whether that is noise
groups.py  pool seeds, name groups by what differs   plots.py    the pictures
maths.py   Pareto front, fits, best-of-n             tables.py   terminal, CSV, Markdown, JSON
compare.py all of it as one `Comparison`             page.py     one HTML page
"""
