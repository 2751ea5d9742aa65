"""Tokenizer, weights, adapters, and text out of a model."""
