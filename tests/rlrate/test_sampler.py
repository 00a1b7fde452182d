"""Gradient statistics: exact for small models, estimates for large ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlrate.control import UpdateSampler
from rlrate.control.sampler import COLUMNS
from rlrate.errors import ConfigError

SHAPES = [(7, 5), (7,), (3, 7, 2, 2), (1,)]


def tensors(runs: int, shapes: list[tuple[int, ...]] = SHAPES, scale: float = 1.0) -> list[Tensor]:
    return [scale * torch.randn(runs, *shape) for shape in shapes]


def sampler(runs: int = 1, shapes: list[tuple[int, ...]] = SHAPES, **kwargs: object) -> UpdateSampler:
    return UpdateSampler([torch.Size(shape) for shape in shapes], runs, **kwargs)  # type: ignore[arg-type]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).double()


def test_statistics_of_a_small_model_are_exact() -> None:
    watch, weights = sampler(2), tensors(2)
    previous: Tensor | None = None
    expected = []
    for _ in range(3):
        gradients, updates = tensors(2), tensors(2, scale=0.01)
        watch.before(weights, gradients)
        after = [w + u for w, u in zip(weights, updates, strict=True)]
        watch.after(after)
        g, u, w = flat(gradients), flat(after) - flat(weights), flat(weights)
        nan = torch.full((2,), math.nan)
        layers = [
            (a - b).double().square().flatten(1).sum(1) / b.double().square().flatten(1).sum(1)
            for a, b in ((after[0], weights[0]), (after[2], weights[2]))
        ]
        expected.append(
            [
                (g * g).sum(1),
                nan if previous is None else (g * previous).sum(1),
                nan if previous is None else (previous * previous).sum(1),
                (u * u).sum(1),
                (w * w).sum(1),
                -(g * u).sum(1),
                torch.stack(layers).amax(0),
            ]
        )
        weights, previous = after, g
    samples = watch.collect()
    assert samples.shape == (3, len(COLUMNS), 2)
    for sample, columns in zip(samples, expected, strict=True):
        np.testing.assert_allclose(sample, torch.stack(columns).numpy(), rtol=1e-4, atol=1e-6)


def test_norms_of_a_small_model_are_exact() -> None:
    weights = tensors(3)
    np.testing.assert_allclose(sampler(3).norms(weights), flat(weights).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("limit", [10**9, 40])
def test_parts_of_one_matrix_are_measured_as_separate_tensors_are(limit: int) -> None:
    sizes = [math.prod(shape) for shape in SHAPES]
    starts = [3, 150, 50, 140]  # in any order, with gaps
    rows = torch.randn(2, 160)
    parts = [rows[:, a : a + size].view(2, *shape) for a, size, shape in zip(starts, sizes, SHAPES, strict=True)]
    one, other = sampler(2, limit=limit, starts=starts), sampler(2, limit=limit)
    gradients = tensors(2)
    one.before(rows, gradients)
    other.before(parts, gradients)
    rows += 0.01 * torch.randn(2, 160)
    one.after(rows)
    other.after(parts)
    np.testing.assert_array_equal(one.collect(), other.collect())
    assert torch.equal(one.norms(rows), other.norms(parts))


def test_collecting_empties_and_forgets_the_last_gradient() -> None:
    watch, weights = sampler(), tensors(1)
    for _ in range(2):
        watch.before(weights, weights)
        watch.after(weights)
    assert len(watch.collect()) == 2
    assert watch.collect().shape == (0, 7, 1)
    watch.before(weights, weights)
    watch.after(weights)
    assert np.isnan(watch.collect()[0, 1])


def test_after_without_before_is_no_sample() -> None:
    watch = sampler()
    watch.after(tensors(1))
    assert len(watch.collect()) == 0


def test_statistics_of_a_large_model_are_estimated_from_few_coordinates() -> None:
    shapes = [(512, 784), (512,), (256, 512), (256,), (10, 256), (10,)]
    watch = sampler(shapes=shapes)
    assert sum(watch.counts) <= 3000
    weights, gradients = tensors(1, shapes), tensors(1, shapes, 0.1)
    # layers move by different amounts, and gradients point against the update
    after = [w - (0.001 + 0.001 * i) * g for i, (w, g) in enumerate(zip(weights, gradients, strict=True))]
    watch.before(weights, gradients)
    watch.after(after)
    exact = sampler(shapes=shapes, limit=10**9)
    exact.before(weights, gradients)
    exact.after(after)
    estimate, truth = watch.collect()[0, :, 0], exact.collect()[0, :, 0]
    known = [0, 3, 4, 5]
    np.testing.assert_allclose(estimate[known], truth[known], rtol=0.15)
    assert truth[6] / 3 < estimate[6] < truth[6] * 3  # small matrices have few coordinates in the sample


@given(st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=3), min_size=1, max_size=6))
def test_every_column_is_visited(shapes: list[list[int]]) -> None:
    watch = sampler(shapes=[tuple(shape) for shape in shapes])
    for shape, stride, count in zip(shapes, watch.strides, watch.counts, strict=True):
        assert stride == 1 or math.gcd(stride, shape[-1]) == 1
        assert count == len(range(0, math.prod(shape), stride))
        assert count >= 1
    assert watch.weights.sum().item() == pytest.approx(sum(math.prod(shape) for shape in shapes), rel=1e-4)


def test_missing_gradients_count_as_zero() -> None:
    watch, weights = sampler(), tensors(1)
    gradients: list[Tensor | None] = [*tensors(1)]
    gradients[0] = None
    watch.before(weights, gradients)
    watch.after(weights)
    known = [g for g in gradients if g is not None]
    assert watch.collect()[0, 0, 0] == pytest.approx(float(flat(known).square().sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    watch = sampler(dtype=dtype)
    weights = [tensor.to(dtype) for tensor in tensors(1, scale=300.0)]  # squares overflow float16
    watch.before(weights, weights)
    watch.after([weight + weight * 0.25 for weight in weights])
    sample = watch.collect()[0, :, 0]
    assert sample[4] == pytest.approx(float(flat(weights).square().sum()), rel=1e-4)
    assert math.sqrt(sample[3] / sample[4]) == pytest.approx(0.25, rel=1e-2)


def test_weights_that_are_all_zero_have_a_floor() -> None:
    watch = sampler()
    zeros = [torch.zeros(1, *shape) for shape in SHAPES]
    watch.before(zeros, zeros)
    watch.after(zeros)
    sample = watch.collect()[0, :, 0]
    assert sample[4] == pytest.approx(1e-4 * sum(math.prod(shape) for shape in SHAPES))
    assert sample[6] == 0.0


def test_models_without_matrices_or_without_entries() -> None:
    shapes: list[tuple[int, ...]] = [(5,), (0,), (0, 3), ()]
    watch = sampler(shapes=shapes)
    weights = tensors(1, shapes)
    watch.before(weights, weights)
    watch.after(weights)
    assert watch.collect()[0, 6, 0] == 0.0


def test_state_continues_with_the_next_cosine() -> None:
    weights, gradients = tensors(1), [tensors(1) for _ in range(2)]
    whole, resumed = sampler(), sampler()
    whole.before(weights, gradients[0])
    whole.after(weights)
    resumed.load_state_dict(whole.state_dict())
    for watch in (whole, resumed):
        watch.before(weights, gradients[1])
        watch.after(weights)
    np.testing.assert_array_equal(resumed.collect(), whole.collect())


def test_the_state_of_another_model_is_refused() -> None:
    watch, weights = sampler(), tensors(1)
    watch.before(weights, weights)
    watch.after(weights)
    with pytest.raises(ConfigError, match="other shapes"):
        sampler(shapes=[(2,)]).load_state_dict(watch.state_dict())
