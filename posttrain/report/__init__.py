"""Compare runs: `posttrain report PATH…` (docs/report.md).

runs.py      find run folders and read them       verdict.py  which is best, and whether that is noise
groups.py    pool seeds, name groups              plots.py    the pictures (style.py: colours, legends)
maths.py     front, fits, best-of-n, intervals    tables.py   terminal, CSV, Markdown, JSON
baseline.py  best-of-n of the start               page.py     one HTML page
gold.py      who trains on gold                   compare.py  all of it as one `Comparison`
"""
