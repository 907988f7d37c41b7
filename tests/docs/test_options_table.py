"""The table of docs/training.md is what the code says, and each option is declared once."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

import pyro_vae as pv
from pyro_vae.inference.training.options import FitKeywords, FitOptions, TrainingOptions
from pyro_vae.runs.config import TrainConfig
from tests.children import ROOT
from tests.docs.options_table import rows


def test_the_table_is_what_the_code_says():
    """After a change: ``python -m tests.docs.options_table``."""
    assert "\n".join(rows()) in (ROOT / "docs/training.md").read_text(encoding="utf-8")


def test_the_keywords_of_fit_are_the_fields_of_its_options():
    fields = {f.name: f.default for f in dataclasses.fields(FitOptions)}
    assert typing.get_type_hints(FitKeywords) == typing.get_type_hints(FitOptions)
    shown = inspect.signature(pv.fit).parameters
    assert {name: shown[name].default for name in shown if name in fields} == fields
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())


def test_the_command_declares_no_option_again_but_its_own_defaults():
    shared = {f.name: f.default for f in dataclasses.fields(TrainingOptions)}
    again = {name for name in TrainConfig.__annotations__ if name in shared}
    assert again == {name for name, default in shared.items() if getattr(TrainConfig(), name) != default}


def test_a_misspelt_option_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match=r"fit: unknown option 'batchsize': .*did you mean 'batch_size'\?"):
        pv.fit(None, None, batchsize=3)
