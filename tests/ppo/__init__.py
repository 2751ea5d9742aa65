"""Tests of posttrain.ppo, the importable trainer."""
