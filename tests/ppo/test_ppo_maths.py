"""The mathematics against numbers worked out by hand."""

import subprocess
import sys

import pytest
import torch

from posttrain.ppo import maths


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


FULL = tensor([1, 1, 1])


@pytest.mark.parametrize(
    ("gamma", "lam", "advantages", "returns"),
    [
        (1.0, 0.95, [0.46575, 0.385, 0.3], [0.96575, 0.985, 1.0]),
        (0.9, 0.8, [0.21712, 0.246, 0.3], [0.71712, 0.846, 1.0]),
    ],
)
def test_gae_by_hand(gamma, lam, advantages, returns):
    a, r = maths.gae(tensor([0, 0, 1]), tensor([0.5, 0.6, 0.7]), FULL, gamma, lam)
    torch.testing.assert_close(a, tensor(advantages))
    torch.testing.assert_close(r, tensor(returns))


def test_gae_ignores_what_lies_under_padding():
    rewards, values = tensor([0, 1, 9, 9], [0, 0, 0, 1]), tensor([0.5, 0.6, 7, 7], [0.1, 0.1, 0.1, 0.1])
    a, r = maths.gae(rewards, values, tensor([1, 1, 0, 0], [1, 1, 1, 1]), 1.0, 0.95)
    torch.testing.assert_close(a[0], torch.tensor([0.48, 0.4, 0, 0]))
    torch.testing.assert_close(r[0], torch.tensor([0.98, 1.0, 0, 0]))


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    values = tensor([0.2, -0.4, 0.9])
    a, r = maths.gae(tensor([1, 2, 3]), values, FULL, 1.0, 1.0)
    torch.testing.assert_close(r, tensor([6, 5, 3]))
    torch.testing.assert_close(a, tensor([6, 5, 3]) - values)


def test_whitening_by_hand():
    x, mask = tensor([1, 2, 3, 99]), tensor([1, 1, 1, 0])
    torch.testing.assert_close(maths.masked_whiten(x, mask), tensor([-1, 0, 1, 0]))
    torch.testing.assert_close(maths.masked_whiten(x, mask, shift_mean=False), tensor([1, 2, 3, 0]))


def test_whitening_one_token_or_none_is_finite():
    assert torch.isfinite(maths.masked_whiten(tensor([5, 0]), tensor([1, 0]))).all()
    assert torch.isfinite(maths.masked_whiten(tensor([5, 0]), tensor([0, 0]))).all()


def test_whitening_over_processes_equals_whitening_the_whole():
    x, mask = torch.randn(4, 5), (torch.rand(4, 5) > 0.3).float()
    whole = maths.masked_whiten(x, mask)
    # Two processes with two rows each, in lockstep: sums of one are completed with the other's.
    moments = iter([mask.sum(), (x * mask).sum()])

    def reduce(_):
        return next(moments, (((x - (x * mask).sum() / mask.sum()) * mask) ** 2).sum())

    torch.testing.assert_close(maths.masked_whiten(x[:2], mask[:2], reduce=reduce), whole[:2])


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)])
def test_kl_estimators_by_hand(estimator, expected):
    torch.testing.assert_close(maths.kl_estimate(tensor([-1.0]), tensor([-1.5]), estimator), tensor([expected]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_zero_for_equal_policies(estimator):
    logps = torch.randn(3, 4)
    assert maths.kl_estimate(logps, logps, estimator).abs().sum() == 0


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased(estimator):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * maths.kl_estimate(p.log(), q.log(), estimator)).sum(), exact)


def test_unknown_kl_estimator_is_refused():
    with pytest.raises(KeyError):
        maths.kl_estimate(FULL, FULL, "k4")


def test_token_rewards_by_hand():
    mask = tensor([1, 1, 1], [1, 1, 0])
    rewards = maths.token_rewards(torch.tensor([1.0, 2.0]), torch.full((2, 3), 0.1), 0.5, mask)
    torch.testing.assert_close(rewards, tensor([-0.05, -0.05, 0.95], [-0.05, 1.95, 0]))


def test_token_rewards_of_an_empty_completion_are_zero():
    assert maths.token_rewards(torch.tensor([3.0]), torch.ones(1, 2), 0.5, tensor([0, 0])).abs().sum() == 0


def test_policy_loss_by_hand():
    # Ratios 1.5 and 0.5, clipped to 1.2 and 0.8: with a positive advantage only growth is clipped, with a negative
    # one only decline.
    logps = tensor([1.5, 0.5, 1.5, 0.5]).log()
    advantages = tensor([1, 1, -1, -1])
    loss, ratio, clipped = maths.policy_loss(logps, torch.zeros(1, 4), advantages, 0.2, 0.2)
    torch.testing.assert_close(ratio, tensor([1.5, 0.5, 1.5, 0.5]))
    torch.testing.assert_close(loss, tensor([-1.2, -0.5, 1.5, 0.8]))
    assert clipped.tolist() == [[True, False, False, True]]


def test_policy_loss_with_a_higher_upper_bound():
    loss, _, _ = maths.policy_loss(tensor([1.5]).log(), tensor([0]), tensor([1]), 0.2, 0.28)
    torch.testing.assert_close(loss, tensor([-1.28]))


def test_policy_gradient_at_ratio_one_is_the_advantage():
    logps = torch.zeros(1, 3, requires_grad=True)
    loss, _, _ = maths.policy_loss(logps, torch.zeros(1, 3), tensor([1, -2, 3]), 0.2, 0.2)
    loss.sum().backward()
    torch.testing.assert_close(logps.grad, -tensor([1, -2, 3]))


def test_value_loss_by_hand():
    # Old value 0, return 1. A prediction of 0.5 counts as 0.2: the worse of the two errors is 0.8 ** 2.
    values, zeros, ones = tensor([0.5, 0.1]), torch.zeros(1, 2), torch.ones(1, 2)
    loss, clipped = maths.value_loss(values, zeros, ones, 0.2)
    torch.testing.assert_close(loss, tensor([0.32, 0.405]))
    assert clipped.tolist() == [[True, False]]
    loss, clipped = maths.value_loss(values, zeros, ones, None)
    torch.testing.assert_close(loss, tensor([0.125, 0.405]))
    assert not clipped.any()


def test_explained_variance():
    returns, mask = tensor([1, 2, 3, 50]), tensor([1, 1, 1, 0])
    assert maths.explained_variance(returns, returns, mask) == 1
    torch.testing.assert_close(maths.explained_variance(torch.full((1, 4), 2.0), returns, mask), torch.tensor(0.0))


def test_fixed_kl_coefficient_stays():
    controller = maths.KLController(0.1)
    controller.update(kl=100, num_completions=1000)
    assert controller.value == 0.1


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.102), (6.6, 0.102), (5.5, 0.101), (5.0, 0.1), (0.0, 0.098)])
def test_adaptive_kl_coefficient_by_hand(kl, expected):
    controller = maths.KLController(0.1, target=5.0, horizon=1000)
    controller.update(kl, num_completions=100)
    assert controller.value == pytest.approx(expected)


def test_the_maths_needs_neither_trl_nor_transformers():
    code = "import sys, posttrain.ppo.maths; sys.exit(any(m in sys.modules for m in ('trl', 'transformers', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
