"""The networks and losses of further kinds that choose among controllers, beside what defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, distributions, nn

from rlrate.envs.workloads import make_workload
from rlrate.envs.workloads.distributions import (
    QUANTILES,
    CouplingFlow,
    Ordinal,
    hazard_loss,
    mixture_loss,
    ordinal_loss,
    pinball_loss,
)
from rlrate.envs.workloads.relations import BradleyTerry, GraphConvolution, Triplets, communities, margin_loss
from rlrate.envs.workloads.routing import Experts, Highway, SoftTree
from rlrate.experiments.suite import load_suite


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def seeded(module: type[nn.Module], *args: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return module(*args)


def test_a_mixture_has_the_likelihood_of_a_mixture() -> None:
    output, target = normal(40, 9), normal(40, 1)
    logits, mean, log_deviation = output.chunk(3, dim=1)
    parts = distributions.Normal(mean, log_deviation.exp())
    mixture = distributions.MixtureSameFamily(distributions.Categorical(logits=logits), parts)
    expected = -mixture.log_prob(target[:, 0]).mean()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(mixture_loss(output, target), expected)


def test_a_flow_is_a_density() -> None:
    flow = seeded(CouplingFlow, 4, 8)
    line = torch.linspace(-12, 12, 400)
    points = torch.cartesian_prod(line, line)
    with torch.no_grad():
        mass = flow(points).exp().sum() * (line[1] - line[0]) ** 2
    assert float(mass) == pytest.approx(1.0, abs=0.01)


def test_hazards_have_the_likelihood_of_ends_and_of_what_is_lost_from_sight() -> None:
    output = normal(3, 4)
    chance = output.sigmoid()
    lived = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    ended = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    likelihood = torch.stack([(1 - chance[0, :2]).prod() * chance[0, 2], chance[1, 0], (1 - chance[2, :3]).prod()])
    torch.testing.assert_close(hazard_loss(output, torch.cat([lived, ended], dim=1)), -likelihood.log().mean())


def test_the_quantiles_cost_least_under_the_pinball_loss() -> None:
    values = normal(4001, 1)
    best = torch.quantile(values, torch.tensor(QUANTILES)).expand(4001, 3)
    least = pinball_loss(best, values)
    for quantile in range(3):
        for off in (-0.05, 0.05):
            other = best.clone()
            other[:, quantile] += off
            assert pinball_loss(other, values) > least


def test_grades_have_chances_between_rising_thresholds() -> None:
    model, inputs = seeded(Ordinal, 6, 8, 5), normal(20, 6)
    with torch.no_grad():
        above = model(inputs)
        losses = torch.stack([ordinal_loss(above, torch.full((20,), grade)) for grade in range(5)])
        single = torch.stack([ordinal_loss(above[:1], torch.tensor([grade])) for grade in range(5)])
    assert bool((above.diff(dim=1) < 0).all())  # each threshold is higher than the one before
    assert bool(torch.isfinite(losses).all())
    assert float((-single).exp().sum()) == pytest.approx(1.0, abs=1e-4)


def test_a_triplet_pays_for_being_near_the_wrong_one() -> None:
    model, points = seeded(Triplets, 5, 8, 3), normal(10, 3, 5)
    swapped = points[:, [0, 2, 1]]
    torch.testing.assert_close(model(swapped), -model(points))
    assert margin_loss(torch.full((4, 1), 2.0), points) < margin_loss(torch.full((4, 1), -2.0), points)


def test_the_order_of_two_players_tells_nothing() -> None:
    model, pairs = seeded(BradleyTerry, 7, 2), torch.tensor([[0, 3], [5, 1], [2, 6]])
    torch.testing.assert_close(model(pairs).softmax(dim=1), model(pairs.flip(1)).softmax(dim=1).flip(1))


def test_a_graph_convolution_averages_over_neighbours() -> None:
    neighbours, features, labels = communities(np.random.default_rng(0))
    model = seeded(GraphConvolution, neighbours, features, 4, 5)
    assert isinstance(model.first, nn.Linear) and isinstance(model.second, nn.Linear)
    with torch.no_grad():
        weights = [
            (layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in (model.first, model.second)
        ]
        found = model(torch.tensor([3, 17])).numpy()
    hidden = np.maximum(neighbours @ features @ weights[0][0].T + weights[0][1], 0)
    np.testing.assert_allclose(found, (neighbours @ hidden @ weights[1][0].T + weights[1][1])[[3, 17]], rtol=1e-4)
    assert np.bincount(labels).min() > 40 and np.allclose(neighbours, neighbours.T)


def test_a_soft_tree_sends_each_example_to_its_leaves_once() -> None:
    tree = seeded(SoftTree, 4, 3, 1)
    assert isinstance(tree.leaves, nn.Parameter) and isinstance(tree.splits, nn.Linear)
    with torch.no_grad():
        tree.leaves.fill_(1.0)
        torch.testing.assert_close(tree(normal(9, 4)), torch.ones(9, 1))
        tree.leaves.copy_(torch.arange(8.0)[:, None])
        tree.splits.weight.zero_()
        tree.splits.bias.copy_(torch.tensor([40.0, 0, -40, 0, 0, 40, 0]))  # right, left, right
    torch.testing.assert_close(tree(normal(2, 4)), torch.full((2, 1), 5.0))


def test_experts_answer_as_the_gate_weighs_them() -> None:
    experts, inputs = seeded(Experts, 3, 2, 4), normal(5, 3)
    assert isinstance(experts.gate, nn.Linear) and isinstance(experts.leave, nn.Parameter)
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.bias.copy_(torch.tensor([40.0, -40.0]))
        first = experts(inputs)
        experts.leave[1].fill_(9.0)
        torch.testing.assert_close(experts(inputs), first)
        experts.leave[0].zero_()
        torch.testing.assert_close(experts(inputs), torch.zeros(5, 1))


def test_closed_gates_of_a_highway_pass_all_on() -> None:
    highway, inputs = seeded(Highway, 4, 6, 5, 3), normal(7, 4)
    assert isinstance(highway.enter, nn.Linear) and isinstance(highway.head, nn.Linear)
    assert isinstance(highway.gates, nn.ModuleList)
    with torch.no_grad():
        for gate in highway.gates:
            assert isinstance(gate, nn.Linear)
            gate.bias.fill_(-60.0)
        torch.testing.assert_close(highway(inputs), highway.head(highway.enter(inputs)))


def test_the_suite_has_workloads_that_no_other_suite_has_each_under_three_optimizers() -> None:
    problems = load_suite("kinds").problems
    workloads = {problem.workload for problem in problems}
    others = {problem.workload for name in ("crossed", "held-out", "long") for problem in load_suite(name).problems}
    assert len(problems) == 3 * len(workloads) == 48 and not workloads & others
    assert len({problem.kind for problem in problems}) == len(workloads)
    for name in workloads:
        optimizers = {problem.optimizer for problem in problems if problem.workload == name}
        assert len(optimizers & {"sgd", "momentum", "nesterov"}) == 1
        assert len(optimizers & {"adam", "adamw"}) == 1
        assert make_workload(name, 0).family == name
