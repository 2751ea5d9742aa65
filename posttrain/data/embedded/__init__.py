"""The embedded model and data sets, from pinned wheels."""
