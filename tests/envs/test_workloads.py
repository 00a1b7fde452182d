"""Every built-in workload."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import (
    QuadraticWorkload,
    get_workload,
    make_workload,
    workload_entries,
    workload_names,
)
from rlrate.envs.workloads import data as bundled
from rlrate.envs.workloads.data import Source
from rlrate.envs.workloads.structured import strokes, switches, walks
from rlrate.errors import WorkloadError

FAMILIES = [
    "mlp-classification",
    "mlp-regression",
    "logistic-regression",
    "cnn",
    "cnn-batchnorm",
    "autoencoder",
    "recurrent",
    "char-transformer",
    "noisy-quadratic",
    "deep-mlp",
    "attention",
    "plateau",
    "ill-conditioned",
    "likelihood",
    "noisy-labels",
    "overfit",
    "wide-mlp",
    "bandit",
    "drift",
    "ordinary",
    "structured",
    "scarce",
]
# The same networks on part of the data: what holds for the families holds for these.
RESTRICTED = [
    "training-mlp-classification",
    "training-mlp-regression",
    "training-logistic-regression",
    "training-cnn",
    "training-autoencoder",
]
FIXED = [
    "digits-mlp",
    "wine-mlp",
    "diabetes-mlp",
    "breast-cancer-logistic",
    "digits-cnn",
    "digits-cnn-batchnorm",
    "digits-autoencoder",
    "photo-autoencoder",
    "photo-autoencoder-large",
    "digits-gru",
    "char-transformer-small",
    "quadratic-20",
    "digits-deep-narrow",
    "digits-wide",
    "digits-mlp-large",
    "digits-noisy-labels",
    "digits-small",
    "documents-softmax",
    "photo-pixels-mlp",
    "checkerboard-gated",
    "chirps-convolution",
    "chirps-mixer",
    "spreads-set",
    "cubic-least-squares",
    "iris-mlp",
    "ratings-factorisation",
    "patterns-vae",
    "rings-maxout",
    "dampings-autoencoder",
    "symbols-gating",
    "votes-factorisation-machine",
    "wiggles-radial",
    "kin-triplets",
    "matches-strengths",
    "communities-graph",
    "phrases-bag",
    "integrals-operator",
    "regions-experts",
    "ledges-tree",
    "keys-highway",
    "shapes-depthwise",
    "branches-mixture",
    "crescents-flow",
    "lifetimes-hazard",
    "demand-quantiles",
    "knots-denoising",
    "tags-dropout",
    "grades-ordinal",
]
SEEDS = range(8)

# Families whose rows are all different, so that a row in both parts would be a leak.
DISTINCT = {"mlp-regression", "autoencoder", "cnn", "cnn-batchnorm", "ill-conditioned", "likelihood", "bandit"}
DISTINCT |= {"structured"}

PATIENCE = {name: (0.02, 150) for name in ("checkerboard-gated", "matches-strengths")}  # rate and steps
PATIENCE["ratings-factorisation"] = (0.03, 150)

# Families whose training loss says little, or is no ratio scale: their held-out loss must fall.
SIGNED = {"bandit", "likelihood"}
MOST_HELD_OUT = {"scarce": 512}
LARGEST_BATCH = {"ill-conditioned": 256, "wide-mlp": 256}
MOST_WEIGHTS = {"wide-mlp": 200_000, "ordinary": 150_000, "structured": 150_000, "scarce": 100_000}


def parameters(workload: Workload, seed: int = 0) -> list[Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [parameter.detach() for parameter in workload.make_model().parameters()]


def heldout_loss(workload: Workload, model: nn.Module) -> float:
    inputs, targets = workload.heldout
    with torch.no_grad():
        return float(workload.loss(model.eval()(inputs), targets))


def train(workload: Workload, lr: float, steps: int) -> tuple[list[float], nn.Module]:
    """An ordinary torch loop with Adam."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    model, losses = workload.make_model().train(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    inputs, targets = workload.train
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(inputs), workload.batch_size, replace=False))
        loss = workload.loss(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def same(first: Workload, second: Workload) -> bool:
    pairs = zip(
        [*first.train, *first.heldout, *parameters(first)],
        [*second.train, *second.heldout, *parameters(second)],
        strict=False,
    )
    return first.batch_size == second.batch_size and all(torch.equal(a, b) for a, b in pairs)


def test_the_families_and_fixed_workloads_are_registered() -> None:
    assert {*FAMILIES, *RESTRICTED} == set(workload_names("family"))
    assert set(FIXED) == set(workload_names("fixed"))
    assert all(entry.description for entry in workload_entries())


@pytest.mark.parametrize(
    ("name", "seed"),
    [*((name, seed) for name in FAMILIES for seed in SEEDS), *((name, seed) for name in RESTRICTED for seed in (0, 1))],
)
def test_a_draw_is_a_sound_workload(name: str, seed: int) -> None:
    workload = make_workload(name, seed)  # checks shapes, types, finiteness
    assert workload.family == name
    examples = len(workload.train[0])
    assert 1 <= workload.batch_size <= min(LARGEST_BATCH.get(name, 128), examples)
    assert len(workload.heldout[0]) <= MOST_HELD_OUT.get(name, 256)
    assert name == "noisy-quadratic" or len(workload.heldout[0]) >= 50
    assert sum(values.numel() for values in parameters(workload)) < MOST_WEIGHTS.get(name, 50_000)
    assert all(bool(torch.isfinite(values).all()) for values in parameters(workload))
    model = workload.make_model()
    assert heldout_loss(workload, model) > 0
    if name in DISTINCT:
        rows = {row.numpy().tobytes() for row in workload.train[0]}
        assert not any(row.numpy().tobytes() in rows for row in workload.heldout[0])
    pickle.loads(pickle.dumps(workload))  # workers of a vector environment may be processes


@pytest.mark.parametrize("name", [*FAMILIES, *RESTRICTED, *FIXED])
def test_the_seed_decides(name: str) -> None:
    assert same(make_workload(name, 3), make_workload(name, 3))
    assert same(make_workload(name, 3), make_workload(name, 4)) == (name in FIXED)


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_workload_learns(name: str) -> None:
    workload = make_workload(name, 0)
    start = heldout_loss(workload, workload.make_model())
    losses, model = train(workload, *PATIENCE.get(name, (0.003, 100)))
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])
    assert heldout_loss(workload, model) < start


@pytest.mark.parametrize("name", sorted({*FAMILIES} - SIGNED))
def test_most_draws_of_a_family_learn(name: str) -> None:
    ratios = []
    for seed in SEEDS[:5]:
        losses, _ = train(make_workload(name, seed), 0.003, 60)
        ratios.append(np.mean(losses[-20:]) / np.mean(losses[:5]))
    assert np.median(ratios) < 0.95  # some stay on a plateau for longer, and are meant to
    assert max(ratios) < 2.0


@pytest.mark.parametrize("signals", [walks, switches])
def test_signals_with_memory_vary_in_one_direction_most_of_all(signals: Source) -> None:
    shares = []
    for seed in SEEDS:
        inputs = signals(np.random.default_rng(seed)).inputs
        spectrum = np.square(np.linalg.svd(inputs - inputs.mean(axis=0), compute_uv=False))
        shares.append(spectrum[0] / spectrum.sum())
    assert np.median(shares) > 0.5  # surfaces 0.36, smooth pictures 0.14, sparse codes 0.09


@pytest.mark.parametrize("seed", SEEDS)
def test_strokes_of_a_class_resemble_each_other(seed: int) -> None:
    examples = strokes(np.random.default_rng(seed))
    pictures, labels = examples.inputs.reshape(len(examples.inputs), -1), examples.targets
    means = np.stack([pictures[:1000][labels[:1000] == one].mean(axis=0) for one in range(examples.classes)])
    nearest = np.square(pictures[1000:, None] - means).sum(axis=2).argmin(axis=1)
    assert np.mean(nearest == labels[1000:]) > 1.5 / examples.classes


@pytest.mark.parametrize("name", sorted(SIGNED))
def test_the_heldout_loss_falls_where_the_training_loss_is_no_measure(name: str) -> None:
    improved = 0
    for seed in SEEDS[:5]:
        workload = make_workload(name, seed)
        torch.manual_seed(1)
        start = heldout_loss(workload, workload.make_model())
        improved += heldout_loss(workload, train(workload, 0.003, 100)[1]) < start
    assert improved >= 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"recurrent", "bandit"}))
@pytest.mark.filterwarnings("error")
def test_stacked_networks_equal_single_ones(name: str, seed: int) -> None:
    workload = make_workload(name, seed)
    models = [workload.make_model().double() for _ in range(2)]
    values, buffers = stack_module_state(models)
    skeleton = workload.make_model().to("meta")
    inputs, targets = (part[:6] for part in workload.train)
    inputs, targets = (part.double() if part.is_floating_point() else part for part in (inputs, targets))

    def loss(value: dict[str, Tensor], buffer: dict[str, Tensor]) -> Tensor:
        return workload.loss(functional_call(skeleton, (value, buffer), (inputs,)), targets)

    stacked = torch.vmap(loss)(values, buffers)
    gradients = torch.autograd.grad(stacked.sum(), list(values.values()))
    for index, model in enumerate(models):
        single = workload.loss(model(inputs), targets)
        assert stacked[index].item() == pytest.approx(single.item(), rel=1e-9)
        torch.autograd.backward(single)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient[index], parameter.grad, rtol=1e-7, atol=1e-9)


def test_inputs_are_standardised_by_training_statistics() -> None:
    workload = make_workload("diabetes-mlp", 0)
    for values in workload.train:
        assert values.mean(dim=0).abs().max() < 1e-4
        assert (values.std(dim=0, correction=0) - 1).abs().max() < 1e-3
    assert workload.heldout[0].mean(dim=0).abs().max() > 1e-3


def test_the_quadratic_follows_its_theory() -> None:
    """Excess loss after SGD at a constant rate, against the recursion in the module's docstring."""
    workload = make_workload("quadratic-20", 0)
    assert isinstance(workload, QuadraticWorkload)
    h, sigma, optimum = (values.double() for values in (workload.curvature, workload.sigma, workload.optimum))
    rate, batch, steps, runs = 0.3, workload.batch_size, 100, 200
    mean, variance = -optimum, torch.ones_like(h)  # the start is standard normal
    for _ in range(steps):
        mean = (1 - rate * h) * mean
        variance = (1 - rate * h) ** 2 * variance + (rate * h * sigma) ** 2 / batch
    expected = float(0.5 * (h * (mean**2 + variance)).sum())

    generator = torch.Generator().manual_seed(0)
    position = torch.stack([parameters(workload, seed)[0].double() for seed in range(runs)])
    noise = workload.train[0].double()
    for _ in range(steps):
        rows = torch.randint(len(noise), (runs, batch), generator=generator)
        position = position - rate * h * (position - optimum - noise[rows].mean(dim=1))
    losses = 0.5 * (h * (position - optimum) ** 2).sum(dim=1)
    error = float(losses.std()) / math.sqrt(runs)
    assert float(losses.mean()) == pytest.approx(expected, abs=4 * error)

    model = workload.make_model()
    with torch.no_grad():
        model.get_parameter("position").copy_(workload.optimum)
    assert heldout_loss(workload, model) == 0.0


def test_label_noise_and_imbalance() -> None:
    examples = bundled.digits()
    rng = np.random.default_rng(0)
    (_, clean), _ = bundled.split(rng, examples, 1000)
    rng = np.random.default_rng(0)
    (_, noisy), _ = bundled.split(rng, examples, 1000, label_noise=0.3)
    assert 0.2 < float((clean != noisy).float().mean()) < 0.34  # a random class may be the true one
    (_, uneven), _ = bundled.split(rng, examples, 300, imbalance=0.5)
    counts = torch.bincount(uneven, minlength=10)
    assert counts[0] > 5 * counts[9]


def test_a_family_can_be_kept_to_some_of_its_data() -> None:
    factory: Any = get_workload("mlp-classification")
    names = {factory(np.random.default_rng(seed), only=["wine"]).name for seed in SEEDS}
    assert names == {"mlp-classification/wine"}
    for name in ("mlp-classification", "char-transformer"):
        limited: Any = get_workload(name)
        with pytest.raises(WorkloadError, match="unknown data vine; choose from"):
            limited(np.random.default_rng(0), only=["vine"])


def test_scikit_learn_is_not_imported_before_its_data_are_needed() -> None:
    code = (
        "import sys, rlrate.envs.workloads as w; w.make_workload('noisy-quadratic', 0); "
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_scikit_learn_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    bundled.wine.cache_clear()
    with pytest.raises(WorkloadError, match=r'pip install "rlrate\[train\]"'):
        make_workload("wine-mlp", 0)


def test_the_example_in_the_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "workloads.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    file = tmp_path / "my_file.py"
    file.write_text(blocks[0])
    assert make_workload(f"{file}:make", 0).accuracy
    for name in [*FAMILIES, *RESTRICTED, *FIXED]:
        assert f"`{name}`" in page.read_text(), f"docs/workloads.md does not mention {name}"
