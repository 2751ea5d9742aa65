"""A run's folder on disk: read, written, named, described."""
