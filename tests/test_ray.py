"""A training and a comparison on a Ray cluster, each of which loses an actor."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlrate.agents import Recipe, train

import comparing

# One cluster for both, as starting it and its actors takes longer than they do: two actors, of which one is killed
# while it works, in the second rollout and at the first finished cell. Before and after, of a cluster is asked what it
# cannot give.
SCRIPT = """
import json, os, signal, sys
import ray
from rlrate.agents import Recipe, train
from rlrate.envs import TrainingConfig, cluster
from rlrate.errors import RlrateError
from rlrate.experiments import backends
from rlrate.experiments.cluster import RayWorkers
import comparing

class Killing(cluster.RayHost):
    calls, killed = 0, 0

    def ask(self, method, argument):
        Killing.calls += 1
        if Killing.calls == 31:
            Killing.killed = ray.get(self._actor.pid.remote())
        super().ask(method, argument)
        if Killing.calls == 31:
            os.kill(Killing.killed, signal.SIGKILL)

class KillingWorkers(RayWorkers):
    killed = 0

    def collect(self):
        finished = super().collect()
        if finished and not KillingWorkers.killed:
            worker = next(w for w in self._workers if w.cell is not None)
            KillingWorkers.killed = ray.get(worker.actor.pid.remote())
            worker.answer = worker.actor.run.remote(worker.cell)
            os.kill(KillingWorkers.killed, signal.SIGKILL)
        return finished

class Doomed(cluster.RayHost):
    def _new(self):
        actor = super()._new()
        ray.kill(actor)
        return actor

def error_of(call):
    try:
        call()
    except RlrateError as error:
        return str(error)

out, recipe = sys.argv[1], Recipe.from_dict(json.loads(sys.argv[2]))
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
error = error_of(lambda: train(recipe, out + "/none", workers=2, backend="ray"))
assert "cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in error, error
assert not os.path.exists(out + "/none")
del os.environ["RAY_ADDRESS"]
cluster.join(2)
cluster.RayHost = Killing
train(recipe, out + "/killed", workers=2, backend="ray")
assert Killing.killed and Killing.calls > 31
assert "has 2 cores, too few for 3 workers" in error_of(lambda: cluster.join(3))
doomed = Doomed(TrainingConfig(workload="wine-mlp", steps=20), 2, 2)
doomed.ask("begin", {0: (1, 0, 0)})
assert "died 3 times in a row" in error_of(doomed.answer)
doomed.close()
backends.BACKENDS["ray"] = KillingWorkers
comparing.compare(out + "/compared", workers=2, backend="ray")
assert KillingWorkers.killed
assert ray.is_initialized()
cluster.leave()
assert not ray.is_initialized()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_results_are_the_same_also_when_actors_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.agents.conftest import TINY

    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests it would hardly get on
    monkeypatch.setenv("PYTHONPATH", str(Path(comparing.__file__).parent))
    train(Recipe.from_dict(TINY), tmp_path / "alone")
    comparing.compare(tmp_path / "compared-alone")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(TINY)], check=True, timeout=300)
    for name in ("controller.safetensors", "progress.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert comparing.rows(tmp_path / "compared") == comparing.rows(tmp_path / "compared-alone")
