"""The batched environment as Stable-Baselines3 wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rlrate.envs import TrainingVectorEnv


class PopulationVecEnv(VecEnv):
    """Adapts :class:`rlrate.envs.TrainingVectorEnv` to SB3's ``VecEnv`` (the two interfaces differ).

    Args:
        env: The batched environment.
        seed: Determines all episodes; ``seed()`` overrides it before the next reset.
        relative: Pay each run its reward less the mean reward of its population. The runs of a population differ
            only in their start, their actions and their luck, so what the workload makes easy or hard drops out.
    """

    def __init__(self, env: TrainingVectorEnv, seed: int | None = None, *, relative: bool = False) -> None:
        self.env = env
        self._relative = relative
        self._seed = seed
        self._actions: NDArray[Any] | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    @property
    def episode(self) -> int:
        """Number of the episode that is running, counted from the seed."""
        return self.env.seeds.episode - 1

    def reset(self) -> NDArray[np.float32]:
        """Begins new runs; with option ``episode``, that episode of the seed."""
        given = [seed for seed in self._seeds if seed is not None]
        options = next((o for o in self._options if o), None)
        observations, infos = self.env.reset(seed=given[0] if given else self._seed, options=options)
        self._seed = None
        self.reset_infos = _rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keeps the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Applies the kept actions."""
        assert self._actions is not None
        observations, rewards, terminated, _, infos = self.env.step(self._actions)
        final = infos.pop("final_info", None)
        final_observations = infos.pop("final_obs", None)
        rows = _rows(infos, self.num_envs)
        for index in np.flatnonzero(terminated):
            assert final is not None and final_observations is not None
            rows[index] = {
                **{k: v[index] for k, v in final.items() if not k.startswith("_")},
                "terminal_observation": final_observations[index],
                "TimeLimit.truncated": False,
                "episode": {"r": float(final["improvement"][index]), "l": 0, "t": 0.0},
            }
        if self._relative:
            groups = rewards.reshape(self.env.draws, -1)
            rewards = (groups - groups.mean(axis=1, keepdims=True)).ravel()
        return observations, rewards.astype(np.float32), terminated, rows

    def close(self) -> None:
        """Frees the populations."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of the batched environment, once for each row asked for."""
        return [getattr(self.env, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute of the batched environment, which all rows share."""
        del indices
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Calls the method of the batched environment once; its result stands for each row."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Rows are never wrapped."""
        del wrapper_class
        return [False] * len(list(self._get_indices(indices)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Determines the episodes from the next reset on."""
        self._seeds = [seed] * self.num_envs
        return self._seeds


def _rows(infos: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Dictionary of arrays to list of dictionaries, without gymnasium's masks."""
    names = [name for name in infos if not name.startswith("_")]
    return [{name: infos[name][index] for name in names} for index in range(count)]
