"""What annotations say about values of a config. What is refused, and how, is in `faults/test_odd_values.py`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Union

import pytest
import torch

from vae_lab.config.check import check_kind, describe


def fits(kind, value):
    """Whether a setting of a kind may have a value."""
    try:
        check_kind({}, "key", kind, value)
    except ValueError:
        return False
    return True


NUMBERS = (0, 1, -1, 2**63 - 1)
SCALARS = (*NUMBERS, 0.5, True, False, "x", "", None)
OBJECT = {"_target_": "vae_lab.models.posteriors.Gaussian"}


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (int, NUMBERS),
        (float, (*NUMBERS, 0.5)),
        (bool, (True, False)),
        (str, ("x", "")),
        (None, (None,)),
        (int | None, (*NUMBERS, None)),
        (Union[bool, Literal["x"]], (True, False, "x")),  # noqa: UP007
        (Literal["x", "y"], ("x",)),
        (float | torch.Tensor, (*NUMBERS, 0.5)),
    ],
    ids=str,
)
def test_a_kind_takes_its_own_scalars_and_no_others(kind, good):
    def same(a, b):
        return type(a) is type(b) and a == b

    for value in SCALARS:
        assert fits(kind, value) == any(same(value, other) for other in good), value
    assert not any(fits(kind, value) for value in ([], ["x"], {}, {"a": 1}))
    assert fits(kind, OBJECT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**30])
def test_numbers_are_finite_in_float32_and_fit_in_64_bits(value):
    assert not fits(int, value)
    assert not fits(float, value)
    assert not fits(float | None, value)


@pytest.mark.parametrize("kind", [list[int], Sequence[int], tuple[int, ...], list[int] | None], ids=str)
def test_a_list_is_checked_element_by_element(kind):
    for good in ([], [1], [1, 2, 3]):
        assert fits(kind, good)
    for bad in (1, "x", ["x"], [1, None], [1, 0.5], [True], [[1]], {"a": 1}):
        assert not fits(kind, bad)


def test_a_tuple_has_its_length_and_a_dict_its_values():
    assert fits(tuple[float, float], [0.9, 1])
    assert not any(fits(tuple[float, float], bad) for bad in ([0.9], [0.9, 0.9, 0.9], [0.9, "x"], 0.9))
    assert fits(dict[str, int], {"a": 1})
    assert not any(fits(dict[str, int], bad) for bad in ({"a": "x"}, [1], 1))
    assert fits(list, [1, "x"])
    assert fits(dict, {"a": "x"})


@pytest.mark.parametrize("kind", [Any, torch.device, torch.device | None, Callable[[int], int], object], ids=str)
def test_what_yaml_cannot_express_restricts_nothing(kind):
    assert all(fits(kind, value) for value in (*SCALARS, [1], {"a": 1}))
    assert describe(kind) == ""
