"""``rlrate inspect`` and ``rlrate workloads``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from rlrate.cli.terminal import say, say_json, stdout, waiting
from rlrate.errors import ConfigError

if TYPE_CHECKING:
    from rlrate import Controller
    from rlrate.control import Action
    from rlrate.controller import Layers
    from rlrate.envs import Workload


def inspect(
    controller: Annotated[str, typer.Argument(help="Controller file, or the name of a bundled one.")] = "default",
    steps: Annotated[int, typer.Option(help="Budget in updates for which to show the decisions.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a controller sees, when it decides, what it may do, and where it came from.

    Example:  rlrate inspect default

    Example:  rlrate inspect runs/first/controller.safetensors --steps 10000
    """
    from rlrate import Controller
    from rlrate.control import SIGNALS

    loaded = Controller.load(controller)
    facts = _facts(loaded, steps)
    if as_json:
        say_json(facts)
        return
    say(f"{controller}: {_network(loaded)}, {facts['parameters']:,} parameters")
    say(f"identity {facts['identity']}")
    table = Table(title=f"It sees {len(loaded.spec.signals)} signals", title_justify="left")
    table.add_column("signal", no_wrap=True)
    table.add_column("meaning")
    limits = {name: f"; shown within {low:g} to {high:g}" for name, low, high in loaded.spec.limits}
    for name in loaded.spec.signals:
        table.add_row(name, SIGNALS[name] + limits.get(name, ""))
    stdout().print(table)
    ends = facts["decides_after"]
    say(f"With {steps:,} updates it decides {len(ends)} times, after updates")
    stdout().print("  " + " ".join(map(str, ends)) if ends else "  (never: the budget is one interval)")
    say("At a decision")
    for rule in _rules(loaded.spec.action):
        say(f"  {rule}")
    say("Provenance")
    for line in _outline(facts["provenance"]) or ["none"]:
        say(f"  {line}")


def workloads(
    name: Annotated[str | None, typer.Argument(help="Name, or file.py:function, of one workload to sample.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which sample of a family.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List the workloads that controllers are trained and compared on, or show a sample of one.

    Example:  rlrate workloads

    Example:  rlrate workloads cnn --seed 3

    Example:  rlrate workloads my_file.py:make
    """
    with waiting("loading the workloads"):
        from rlrate.envs.workloads import workload_entries, workload_names
    if name is not None:
        _show_sample(name, seed, as_json)
        return
    entries = sorted(workload_entries(), key=lambda entry: workload_names().index(entry.name))
    if as_json:
        say_json([{"name": e.name, "kind": e.kind, "description": e.description} for e in entries])
        return
    kinds = {"family": "Families: another network and data for every seed", "fixed": "Fixed: always the same"}
    for kind, title in kinds.items():
        table = Table(title=title, title_justify="left")
        table.add_column("name", no_wrap=True)
        table.add_column("what it is")
        for entry in entries:
            if entry.kind == kind:
                table.add_row(entry.name, entry.description)
        stdout().print(table)
    say("A sample of one: rlrate workloads NAME. Your own is given as file.py:function.")


def _facts(controller: Controller, steps: int) -> dict[str, Any]:
    if steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {steps}")
    spec = controller.spec
    return {
        "identity": controller.identity,
        "parameters": sum(tensor.numel() for layer in (*controller.layers, *controller.stop) for tensor in layer),
        "sizes": [list(weight.shape) for weight, _ in controller.layers],
        "stop": [list(weight.shape) for weight, _ in controller.stop],
        "activation": controller.activation,
        "head": controller.head,
        "control": spec.to_dict(),
        "steps": steps,
        # At the last boundary the run is over.
        "decides_after": [int(end) for end in spec.cadence.boundaries(steps)[:-1]],
        "provenance": dict(controller.provenance),
    }


def _outline(notes: Mapping[str, Any]) -> list[str]:
    """The notes as lines; a group of notes is opened once."""
    lines = []
    for name, value in sorted(notes.items()):
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {json.dumps(value[key], default=str)}" for key in sorted(value))]
        else:
            lines.append(f"{name}: {json.dumps(value, default=str)}")
    return lines


def _network(controller: Controller) -> str:
    def sizes(layers: Layers) -> str:
        return "-".join(map(str, [layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers)]))

    advises = f", and one of {sizes(controller.stop)} that advises when to stop" if controller.stop else ""
    return f"{sizes(controller.layers)} network, {controller.activation}, {controller.head}{advises}"


def _rules(rule: Action) -> list[str]:
    if rule.multipliers is None:
        lines = [f"the rate is multiplied by 1/{rule.factor:g} to {rule.factor:g}"]
    else:
        lines = [f"the rate is multiplied by one of {', '.join(f'{m:.3g}' for m in rule.multipliers)}"]
    if rule.start is None:
        lines.append("the start is the rate that was given")
    else:
        lines.append(f"the start makes an update {rule.start:g} of the weights, whatever rate was given")
        if rule.short is not None:
            lines.append(f"budgets below {rule.short} updates start higher, as they leave less time to climb")
    if rule.cap is not None:
        lines.append(f"no decision aims at an update above {rule.cap:g} of the weights")
    if rule.cut is not None:
        lines.append(
            f"a spike of the loss multiplies the rate by {rule.cut:g}, a loss that is not finite by "
            f"{rule.cut**2:g} (looked at every {rule.check} updates)"
        )
    if rule.anneal > 0:
        lines.append(f"over the last {rule.anneal:.0%} of the budget the rate goes linearly to zero")
    if rule.patience is not None:
        lines.append(
            f"told steps_per_epoch, it is brought down for good when {rule.patience} decisions in a row advise to stop"
        )
    return lines


def _show_sample(name: str, seed: int, as_json: bool) -> None:
    import torch

    from rlrate.envs import make_workload

    with waiting(f"sampling {name}"), torch.random.fork_rng(devices=[]):
        workload = make_workload(name, seed)
        torch.manual_seed(seed)
        model = workload.make_model()
    facts = _sample_facts(workload) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": str(model),
    }
    if as_json:
        say_json(facts | {"seed": seed})
        return
    say(f"{facts['name']} (family {facts['family']}, seed {seed})")
    for part in ("train", "heldout"):
        say(f"  {part:8} {facts[part]['examples']:,} examples: {facts[part]['inputs']} -> {facts[part]['targets']}")
    say(f"  batch    {facts['batch_size']}, loss {facts['loss']}{', accuracy' if facts['accuracy'] else ''}")
    say(f"  model    {facts['parameters']:,} parameters")
    say(facts["model"])


def _sample_facts(workload: Workload) -> dict[str, Any]:
    def split(inputs: Any, targets: Any) -> dict[str, Any]:
        inner = {"inputs": inputs, "targets": targets}
        described = {k: f"{str(v.dtype).removeprefix('torch.')} {tuple(v.shape[1:])}" for k, v in inner.items()}
        return {"examples": len(inputs), **described}

    return {
        "name": workload.name,
        "family": workload.family,
        "train": split(*workload.train),
        "heldout": split(*workload.heldout),
        "batch_size": workload.batch_size,
        "loss": getattr(workload.loss, "__name__", type(workload.loss).__name__),
        "accuracy": workload.accuracy,
    }
