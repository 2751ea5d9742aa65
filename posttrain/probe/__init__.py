"""The probe: the same measurements of a policy's samples on held-out prompts for every method.

Training losses of SFT, DPO and GRPO cannot be compared; samples can. The probe samples before and after training, and
on request every so many steps and at evaluations. It has its own random state, so training is the same with and
without it. docs/probe.md defines every metric.
"""
