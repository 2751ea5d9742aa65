"""The probe: the same measurements of a policy's samples on held-out prompts for every method.

Training losses of SFT, DPO and GRPO cannot be compared; samples can. The probe draws them before and after training,
every so many steps and at evaluations when asked, from its own random state, so that training is the same with it and
without. docs/probe.md has every metric with its definition.
"""
