"""The data doctor: checks of the rows that a recipe would train on.

`finding` is what a check says and `texts` what it looks at; `duplicates`, `pairs`, `language`, `patterns`, `noise` and
`sequences` hold the checks; `examine` calls them; `page` makes the HTML. `posttrain.jobs.doctor` runs it.
"""
