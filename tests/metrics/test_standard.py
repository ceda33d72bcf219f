from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from vae_lab.metrics.standard import CodebookUse, Means


def alone(values: torch.Tensor) -> torch.Tensor:
    return values


def filled(images: torch.Tensor, sizes: list[int]) -> Means:
    means = Means()
    for part in images.split(sizes):
        means.add({"a": part[:, 0].mean(), "b": part[:, 1].mean()}, len(part))
    return means


def test_unequal_batches_give_the_mean_over_all_images():
    images = torch.rand(100, 2)
    images[96:] += 10  # the last, small batch is what a mean of batch means would get wrong
    means = filled(images, [32, 32, 32, 4]).compute(alone)
    assert list(means) == ["a", "b"]
    torch.testing.assert_close(torch.stack([*means.values()]), images.mean(0), rtol=1e-5, atol=0)  # float32 sums


def test_processes_are_weighted_by_their_images():
    images = torch.tensor([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]])
    first, second = filled(images[:2], [2]), filled(images[2:], [1])
    others = iter([second.sums, torch.tensor(float(second.count))])
    means = first.compute(lambda values: values + next(others))
    torch.testing.assert_close(torch.stack([*means.values()]), images.mean(0))


def test_a_state_that_was_loaded_on_the_cpu_continues_on_a_gpu():
    # A checkpoint is read to the CPU; a run that resumes within an epoch then adds terms that live on its device.
    with FakeTensorMode():  # follows devices as they are, without a GPU
        state = filled(torch.rand(4, 2), [4]).state_dict()
        resumed = Means()
        resumed.load_state_dict(state)
        resumed.add({"a": torch.zeros((), device="cuda"), "b": torch.zeros((), device="cuda")}, 4)
        assert resumed.sums.device.type == "cuda"


def test_the_use_of_a_book_is_counted_over_all_images_however_they_are_batched():
    indices = torch.tensor([[0, 0], [1, 1], [3, 3], [0, 1]])
    found = []
    for size in (1, 3):
        use = CodebookUse()
        for part in indices.split(size):
            use.update(None, None, SimpleNamespace(indices=part, num_codes=6), {})
        found.append(use.compute(alone))
    assert found[0] == found[1]
    assert found[0]["dead_codes"] == 3  # 2, 4 and 5
    share = torch.tensor([3, 3, 2]) / 8
    assert found[0]["perplexity"].item() == pytest.approx((-(share * share.log()).sum()).exp().item())
    use.update(None, None, SimpleNamespace(), {})  # of a posterior without codes
    use.reset()
    assert use.compute(alone) == {}
