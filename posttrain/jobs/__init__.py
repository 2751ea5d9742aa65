"""The jobs: train, sample, evaluate, doctor, pipeline."""
