"""The data doctor: what is wrong with the rows that a recipe would train on, before a GPU is busy.

`finding` is what a check says and `texts` what it looks at; `duplicates`, `pairs`, `language`, `patterns`, `noise` and
`sequences` hold the checks; `examine` calls them; `page` makes the HTML. `posttrain.jobs.doctor` runs it.
"""
