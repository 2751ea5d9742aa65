"""What can be done with a run's config; so far, train it."""
