"""Specs of flags and options: a name, and its arguments."""

from __future__ import annotations

import pytest

from pyro_vae.lookup import parse_numbers, parse_spec

TABLE = {"vamp": 1, "mixture": 2}


def test_a_spec_is_a_name_and_its_arguments():
    assert parse_spec("prior", "vamp:500", TABLE) == (1, ["500"])
    assert parse_spec("prior", "mixture", TABLE) == (2, [])
    assert parse_spec("prior", "vamp::x", TABLE) == (1, ["", "x"])


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(ValueError, match="unknown prior 'wamp': expected one of mixture, vamp; did you mean 'vamp'?"):
        parse_spec("prior", "wamp:500", TABLE)


def test_numbers_of_a_spec():
    numbers = parse_numbers("beta", "x:0.5:3", ["0.5", "3"], (float, int, int), form="x", example="x", optional=1)
    assert numbers == [0.5, 3]
    assert [type(n) for n in numbers] == [float, int]


@pytest.mark.parametrize("args", [[], ["a"], ["1.5"], ["1", "2", "3"], [""]])
def test_missing_superfluous_and_malformed_numbers_are_refused(args):
    text = ":".join(["vamp", *args])
    with pytest.raises(ValueError, match="prior: expected") as caught:
        parse_numbers("prior", text, args, (int, int), form="vamp:K[:L]", example="vamp:500", optional=1)
    assert str(caught.value) == f"prior: expected vamp:K[:L], such as vamp:500, got {text!r}."
