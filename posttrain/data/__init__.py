"""Data: files to rows, rows to one conversation form, that to a trainer's columns."""
