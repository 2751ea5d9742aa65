"""Preferences by people: items from data or a run, a page in the browser, answers on disk, pairs to train on."""
