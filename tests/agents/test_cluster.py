"""Training a controller on a Ray cluster."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Trains with two actors, and kills one in the second rollout while it works; before and after asks of a cluster what it
# cannot give.
SCRIPT = """
import json, os, signal, sys
import ray
from rlrate.agents import Recipe, train
from rlrate.envs import TrainingConfig, cluster
from rlrate.errors import RlrateError

class Killing(cluster.RayHost):
    calls, killed = 0, 0

    def ask(self, method, argument):
        Killing.calls += 1
        if Killing.calls == 31:
            Killing.killed = ray.get(self._actor.pid.remote())
        super().ask(method, argument)
        if Killing.calls == 31:
            os.kill(Killing.killed, signal.SIGKILL)

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
assert ray.is_initialized()
doomed.close()
cluster.leave()
assert not ray.is_initialized()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_ray_gives_the_same_controller_also_when_an_actor_is_killed(
    trained: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests it would hardly get on
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(tiny)], check=True, timeout=300)
    for name in ("controller.safetensors", "progress.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (trained / name).read_bytes()
