"""The mathematics of PPO for language models, on plain tensors.

Shapes: B completions of at most T tokens. Everything per token is (B, T); `mask` is 1 on real tokens, 0 on padding.
Completions are padded on the right, so the real tokens of a row are its first ones. KL is in nats.

Sources:
    PPO       Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7
    GAE       Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation", eq. 16
    KL        Schulman 2020, "Approximating KL divergence" (k1, k2, k3)
    adaptive  Ziegler et al. 2019, "Fine-tuning language models from human preferences", section 2.2
    RLHF      Stiennon et al. 2020, "Learning to summarize from human feedback", section 3.4 (KL inside the reward)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

KLEstimator = Literal["k1", "k2", "k3"]
Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all processes; the identity where there is one."""


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens: a scalar, 0 where there is none."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_moments(x: torch.Tensor, mask: torch.Tensor, reduce: Reduce = identity) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance over the real tokens of all processes, two scalars; the variance of one token is 0."""
    count = reduce(mask.sum().to(x.dtype))
    mean = reduce((x * mask).sum()) / count.clamp(min=1)
    variance = reduce((((x - mean) * mask) ** 2).sum()) / (count - 1).clamp(min=1)
    return mean, variance


def masked_whiten(
    x: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True, reduce: Reduce = identity
) -> torch.Tensor:
    """Scale the real tokens of `x`, (B, T), to unit variance; padding becomes 0.

    With `shift_mean` their mean becomes 0; without it their mean stays, as for rewards (Ziegler et al. 2019).
    """
    mean, variance = masked_moments(x, mask, reduce)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def kl_estimate(logps: torch.Tensor, ref_logps: torch.Tensor, estimator: KLEstimator = "k1") -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled token's log-probabilities, same shape, in nats.

    `k1` is unbiased with high variance and may be negative; `k2` is biased and low in variance; `k3` is unbiased,
    low in variance and never negative.

    Raises:
        KeyError: for an unknown estimator.
    """
    log_ratio = logps - ref_logps
    return {
        "k1": lambda: log_ratio,
        "k2": lambda: log_ratio**2 / 2,
        "k3": lambda: torch.expm1(-log_ratio) + log_ratio,
    }[estimator]()


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, kl_coef: float, mask: torch.Tensor) -> torch.Tensor:
    """Reward of every token, (B, T): minus the KL penalty, plus the score on the last real token.

    Args:
        scores: (B,), one per completion; ignored where a completion has no real token.
        kl: (B, T), per-token KL estimate in nats.
    """
    rewards = -kl_coef * kl * mask
    last = mask.sum(1).long() - 1
    rows = (last >= 0).nonzero().squeeze(1)
    rewards[rows, last[rows]] += scores[rows].to(rewards.dtype)
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns, each (B, T).

    `values[:, t]` is the value of the state *before* token t; the state after the last real token is terminal and
    worth 0. Padding holds 0 in both results.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def policy_loss(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clipped surrogate loss (Schulman et al. 2017, eq. 7, negated), per token.

    Returns:
        loss, probability ratio and whether the clipped branch was the worse one, each (B, T).
    """
    ratio = torch.exp(logps - old_logps)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(plain, clipped), ratio, clipped > plain


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error per token; the prediction is clipped to `cliprange` around the old one (None: unclipped).

    Returns:
        loss and whether the clipped branch was the worse one, each (B, T).
    """
    plain = (values - returns) ** 2
    if cliprange is None:
        return plain / 2, torch.zeros_like(plain, dtype=torch.bool)
    near = torch.maximum(torch.minimum(values, old_values + cliprange), old_values - cliprange)
    clipped = (near - returns) ** 2
    return torch.maximum(plain, clipped) / 2, clipped > plain


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, reduce: Reduce = identity
) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns), over real tokens: 1 is perfect, 0 is as good as a constant."""
    _, residual = masked_moments(returns - values, mask, reduce)
    _, total = masked_moments(returns, mask, reduce)
    return 1 - residual / total.clamp(min=1e-8)


@dataclass
class KLController:
    """The KL coefficient; adaptive when it has a target (Ziegler et al. 2019, section 2.2).

    Args:
        value: the coefficient.
        target: KL per completion to steer to, in nats; None keeps the coefficient fixed.
        horizon: completions after which a KL that is off by 20 % or more has changed the coefficient by 20 %.
    """

    value: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, num_completions: int) -> None:
        """Take the mean KL per completion (nats) of the last rollout and its number of completions."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * num_completions / self.horizon
