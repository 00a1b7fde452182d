"""Train/serve parity: the environment and the scheduler see and do the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lively import lively_controller

from rlrate import LearnedLR
from rlrate.control import Cadence, ControlSpec
from rlrate.envs import OPTIMIZERS, TrainingEnv, make_optimizer, make_workload
from rlrate.envs.plain import plain_run
from rlrate.envs.training import Draw, TrainingConfig, TrainingRuns


# Networks differ where they are trained, see test_population.py, optimizers in what the scheduler does to them.
@pytest.mark.parametrize(
    ("workload", "optimizer"),
    [
        *(("digits-mlp", name) for name in OPTIMIZERS),
        *(("digits-cnn-batchnorm", name) for name in ("momentum", "adam")),
    ],
)
def test_environment_and_scheduler_are_the_same_run(workload: str, optimizer: str) -> None:
    controller = lively_controller()
    start = controller.spec.action.start
    assert start is not None
    steps = 220
    env = TrainingEnv(workload=workload, optimizer=optimizer, steps=steps, start=start, dtype="float64")
    observation, info = env.reset(seed=5)
    seen, done, rates, at = [observation], [], [], []
    terminated = False
    while not terminated:
        action = controller.act(observation[None])
        observation, _, terminated, _, info = env.step(action.astype(np.float32))
        seen.append(observation)
        done.append(float(action[0]))
        rates.append(info["lr"])
        at.append(info["updates"])
    assert env.runs is not None

    served = lively_controller()
    run = plain_run(env.runs.draw.workload, env.runs.draw.optimizer, _seed(env), torch.float64)
    run.optimizer.param_groups[0]["lr"] = 7.0
    scheduler = LearnedLR(run.optimizer, steps, served)
    lr = {}
    for update in range(1, steps + 1):
        loss = run.backward()
        run.optimizer.step()
        scheduler.step(loss)
        lr[update] = scheduler.get_last_lr()[0]
    assert len(served.seen) == len(done) == 39
    np.testing.assert_allclose(np.stack(served.seen), np.stack(seen[:-1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(served.done, done, rtol=1e-5, atol=1e-6)
    # The environment reports rates before the next decision, the scheduler after it: undo that one multiplier.
    factor = controller.spec.action.factor
    after = np.array([lr[u] for u in at[:-1]]) / factor ** np.array(served.done[1:])
    uncapped = np.stack(served.seen)[1:, controller.spec.signals.index("capped")] == 0
    uncapped &= np.append(np.stack(served.seen)[2:, controller.spec.signals.index("capped")], 1.0) == 0
    np.testing.assert_allclose(after[uncapped], np.array(rates[:-1])[uncapped], rtol=1e-5)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_learning_rate_is_the_same(optimizer: str) -> None:
    spec = ControlSpec(cadence=Cadence(decisions=12, first=5, ramp=4))
    controller = lively_controller(1, spec)
    draw = Draw(make_workload("digits-gru", np.random.default_rng(0)), make_optimizer(optimizer), 80)
    runs = TrainingRuns(TrainingConfig(spec=controller.spec, dtype="float64"), draw, [3])
    expected, losses = [], []
    while not runs.done:
        expected.append(float(runs.rates[0]))
        losses.append(float(runs.update()[0]))
        if runs.control.decision_due:
            runs.control.act(controller.act(runs.control.observe()))

    run = plain_run(draw.workload, draw.optimizer, 3, torch.float64)
    scheduler = LearnedLR(run.optimizer, draw.steps, lively_controller(1, spec))
    for update in range(draw.steps):
        loss = run.backward()
        run.optimizer.step()
        # The first rate is set inside the first optimizer step, once the gradient is known.
        used = run.optimizer.param_groups[0]["lr"]
        if update > 0:
            assert used == pytest.approx(expected[update], rel=1e-5)
        assert float(loss) == pytest.approx(losses[update], rel=1e-5)
        scheduler.step(loss)


def _seed(env: TrainingEnv) -> int:
    stream = np.random.default_rng([5, 0, 0, 1, 0])
    return int(stream.integers(2**31))
