"""The flags of every command, by group, with their defaults: a contract."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

FLAGS = {
    "train": {
        "data": {
            "--dataset": "digits",
            "--array": None,
            "--image-size": (),
            "--skip-broken, --no-skip-broken": False,
            "--num-workers": 0,
            "--data-dir": None,
            "--download, --no-download": True,
            "--val-size": None,
            "--binarize": None,
            "--data-seed": 0,
            "--labels": None,
            "--label-seed": 0,
        },
        "model": {
            "--model": "vae",
            "--likelihood": "",
            "--prior": "",
            "--posterior": "",
            "--latent-dim": 16,
            "--hidden": (256, 256),
            "--activation": "tanh",
            "--network": "",
            "--encoder": None,
            "--decoder": None,
            "--num-classes": None,
            "--model-options": (),
        },
        "training": {
            "--elbo": "",
            "--num-particles": None,
            "--vectorize-particles, --no-vectorize-particles": False,
            "--num-groups": None,
            "--alpha": None,
            "--elbo-weight": None,
            "--partitions": None,
            "--epochs": 200,
            "--batch-size": 64,
            "--labelled-per-batch": None,
            "--optimizer": "adam",
            "--lr": 0.001,
            "--lr-schedule": "constant",
            "--clip-norm": None,
            "--patience": None,
            "--beta": 1.0,
            "--anneal": "constant",
            "--free-bits": None,
            "--free-bits-per": "unit",
            "--min-rate": None,
            "--capacity": None,
            "--capacity-weight": 100.0,
            "--total-correlation": None,
            "--target-rate": None,
            "--seed": 0,
            "--compile, --no-compile": None,
            "--check-every": None,
            "--precision": "float32",
        },
        "evaluation": {"--num-samples": 1000, "--compile-draws, --no-compile-draws": None},
        "run": {
            "--run-dir": None,
            "--config": None,
            "--beta-sweep": (),
            "--resume": None,
            "--overwrite, --no-overwrite": False,
            "--device": "auto",
            "--threads": None,
            "--quiet, --no-quiet": False,
            "--version, --no-version": False,
        },
    },
    "evaluate": {
        "options": {
            "--estimator": "importance",
            "--num-samples": None,
            "--target-se": None,
            "--max-samples": 100000,
            "--num-data": None,
            "--num-chains": 16,
            "--num-steps": 500,
            "--start": "guide",
            "--path": "sigmoid",
            "--refine-steps": 200,
            "--dequantize": "none",
            "--checks": (),
            "--compare, --no-compare": True,
            "--compile, --no-compile": None,
            "--device": "auto",
            "--threads": None,
            "--quiet, --no-quiet": False,
            "--version, --no-version": False,
        },
    },
    "data": {"options": {"--data-dir": None}},
}


def values(default) -> dict[str, object]:
    """The fields of a dataclass, and of those in it, by name."""
    found = {}
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        found |= values(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


@pytest.mark.parametrize("command", FLAGS)
def test_flags_groups_and_defaults_stay(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    module = importlib.import_module("pyro_vae.data.__main__" if command == "data" else f"pyro_vae.{command}")
    arguments = module if command == "data" else importlib.import_module(f"pyro_vae.cli.{command}_arguments")
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    defaults, shown = values(arguments.Arguments()), {}
    for line in capsys.readouterr().out.splitlines():
        if heading := re.fullmatch(r"(?:(.+) )?(options|arguments):", line):
            group = shown.setdefault(heading[1] or heading[2], {})
        elif flag := re.match(r"  (--[a-z-]+(?:, --no-[a-z-]+)?)", line):
            group[flag[1]] = defaults[flag[1].split(",")[0][2:].replace("-", "_")]
    assert {heading: flags for heading, flags in shown.items() if flags} == FLAGS[command]
