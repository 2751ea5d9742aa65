"""The config of a run: schema, recipes, checks of settings. Imports no torch."""
