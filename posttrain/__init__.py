"""Post-training of language models on one GPU: Hydra recipes over TRL's trainers."""

__version__ = "0.1.0"
