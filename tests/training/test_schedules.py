import pytest
import torch

from vae_lab.training.schedules import Cosine, Step

TOTAL = 1000


@pytest.mark.parametrize("schedule", [Cosine(100, 0.1), Step(100, 200, 0.5)])
def test_the_warm_up_rises_linearly_to_one(schedule):
    assert [schedule(step, TOTAL) for step in (0, 49, 99)] == [0.01, 0.5, 1.0]
    assert schedule(100, TOTAL) == 1
    rise = [schedule(step, TOTAL) for step in range(100)]
    assert all(b > a > 0 for a, b in zip(rise[:-1], rise[1:], strict=True))


@pytest.mark.parametrize("schedule", [Cosine(50, 0.0), Cosine(0, 0.3), Step(50, 7, 0.9), Step(0, 1, 1.0)])
def test_the_factor_is_in_the_unit_interval_and_never_rises_after_the_warm_up(schedule):
    factors = [schedule(step, TOTAL) for step in range(2 * TOTAL)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[schedule.warmup_steps] == 1
    after = factors[schedule.warmup_steps :]
    assert all(b <= a for a, b in zip(after[:-1], after[1:], strict=True))


def test_cosine_is_the_one_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for step in range(20):
        assert Cosine(0, 0.1)(step, 20) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert Cosine(0, 0.1)(100, 20) == 0.1


def test_a_warm_up_longer_than_the_run_only_rises():
    schedule = Cosine(100, 0.0)
    assert [schedule(step, 50) for step in (0, 24, 49)] == [0.01, 0.25, 0.5]
    assert 0 <= schedule(100, 100) <= 1  # no division by zero where the warm-up is the whole run


def test_step_falls_by_gamma_at_every_multiple():
    schedule = Step(10, 5, 0.1)
    assert [schedule(step, TOTAL) for step in (10, 14)] == [1, 1]
    assert [schedule(step, TOTAL) for step in (15, 19, 20)] == pytest.approx([0.1, 0.1, 0.01])
