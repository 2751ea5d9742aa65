"""What a run is made of: schema, recipes, checks of settings. No torch here."""
