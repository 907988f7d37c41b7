from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction

import pytest

from pyro_vae import schedules


@pytest.mark.parametrize("step", [0, 1, 7, 10**6])
def test_constant_is_its_value_at_every_step(step):
    assert schedules.constant(0.25)(step) == schedules.constant(0.25)(step=step) == 0.25


def test_constant_has_no_argument_without_effect():
    schedule = schedules.constant(0.25)
    assert repr(schedule) == "Constant(value=0.25, steps=0)"
    assert pickle.loads(pickle.dumps(schedule)) == schedule == schedules.constant(value=0.25)
    with pytest.raises(TypeError, match="steps"):
        schedules.constant(0.25, steps=3)


@pytest.mark.parametrize("kind", schedules.RAMPS)
def test_every_schedule_takes_its_step_by_name(kind):
    ramp = schedules.RAMPS[kind](0.0, 1.0, 10)
    assert ramp(step=3) == ramp(3)


@pytest.mark.parametrize(
    ("step", "beta"), [(0, 0.5), (1, 0.65), (5, 1.25), (9, 1.85), (10, 2.0), (11, 2.0), (10**6, 2.0)]
)
def test_linear_by_hand(step, beta):
    assert schedules.linear(0.5, 2.0, steps=10)(step) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize(("step", "beta"), [(0, 4.0), (1, 3.25), (2, 2.5), (4, 1.0), (5, 1.0)])
def test_linear_may_fall(step, beta):
    assert schedules.linear(4.0, 1.0, steps=4)(step) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "beta"),
    [
        # Four cycles of 20 steps, of which the first 10 rise from 0.2 to 2.
        (0, 0.2),
        (1, 0.38),
        (5, 1.1),
        (10, 2.0),
        (15, 2.0),
        (19, 2.0),
        (20, 0.2),
        (25, 1.1),
        (40, 0.2),
        (60, 0.2),
        (61, 0.38),
        (79, 2.0),
        (80, 2.0),
        (81, 2.0),
        (10**6, 2.0),
    ],
)
def test_cyclical_by_hand(step, beta):
    assert schedules.cyclical(0.2, 2.0, steps=80, cycles=4, ratio=0.5)(step) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize(("step", "beta"), [(0, 0.0), (2, 0.5), (4, 1.0), (5, 1.0), (15, 1.0), (16, 0.0), (18, 0.5)])
def test_cyclical_ratio_is_the_share_that_rises(step, beta):
    assert schedules.cyclical(0.0, 1.0, steps=32, cycles=2, ratio=0.25)(step) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize(("steps", "cycles"), [(80, 4), (10, 6), (7, 3), (25, 25), (100, 7), (1000, 12), (21, 18)])
def test_cyclical_is_its_formula_in_exact_arithmetic(steps, cycles):
    schedule = schedules.cyclical(0.0, 1.0, steps=steps, cycles=cycles, ratio=0.5)
    period = Fraction(steps, cycles)
    for step in range(steps):
        exact = min(Fraction(1), (step % period) / period / Fraction(1, 2))
        assert schedule(step) == pytest.approx(float(exact), abs=1e-9), step


def test_steps_say_when_a_schedule_has_settled():
    for schedule in (
        schedules.constant(0.3),
        schedules.linear(0.1, 0.3, 12),
        schedules.cyclical(0.1, 0.3, 12, cycles=3),
    ):
        assert {schedule(step) for step in range(schedule.steps, schedule.steps + 30)} == {0.3}
    assert [schedules.constant(1.0).steps, schedules.linear(0, 1, 12).steps, schedules.cyclical(0, 1, 12).steps] == [
        0,
        12,
        12,
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", schedules.constant(4.0)),
        ("linear:0:2000", schedules.linear(0.0, 4.0, 2000)),
        ("linear:0.5:1", schedules.linear(0.5, 4.0, 1)),
        ("linear:1e-2:30", schedules.linear(0.01, 4.0, 30)),
        ("cyclical:0:2000", schedules.cyclical(0.0, 4.0, 2000, cycles=4)),
        ("cyclical:0.1:2000:7", schedules.cyclical(0.1, 4.0, 2000, cycles=7)),
    ],
)
def test_parse(text, expected):
    assert schedules.parse(text, end=4.0) == expected


@pytest.mark.parametrize("kind", schedules.RAMPS)
def test_each_ramp_has_its_name_and_goes_from_start_to_end(kind):
    ramp = schedules.parse(f"{kind}:0.5:100", end=4.0)
    assert ramp == schedules.RAMPS[kind](0.5, 4.0, 100) == getattr(schedules, kind)(0.5, 4.0, 100)
    values = [ramp(step) for step in range(25)]  # of a cyclical one, the first cycle
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.5)
    assert ramp.steps == 100
    assert max(ramp(step) for step in range(101)) == pytest.approx(4.0)
    with pytest.raises(ValueError, match=f"^anneal: expected {kind}:START:STEPS"):
        schedules.parse(kind, 1.0)
    with pytest.raises(ValueError, match="the start of a schedule"):
        schedules.parse(f"{kind}:-1:100", 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "constant:1",
        "linear",
        "linear:0",
        "linear:0:10:2",
        "linear:a:10",
        "linear:0:b",
        "linear:0:1.5",
        "linear::",
        "cyclical",
        "cyclical:0",
        "cyclical:0:100:2:3",
        "cyclical:0:100:x",
    ],
)
def test_parse_says_the_form_that_was_expected(text):
    form = {
        "constant": "constant",
        "linear": "linear:START:STEPS",
        "cyclical": "cyclical:START:STEPS[:CYCLES]",
    }
    kind = text.partition(":")[0]
    example = "constant" if kind == "constant" else f"{kind}:0:2000"
    with pytest.raises(ValueError, match=r"^anneal: expected") as caught:
        schedules.parse(text, end=1.0)
    assert str(caught.value) == f"anneal: expected {form[kind]}, such as {example}, got {text!r}."


def test_parse_of_an_unknown_kind_lists_the_known_and_the_nearest():
    with pytest.raises(ValueError, match="unknown schedule 'liner'") as caught:
        schedules.parse("liner:0:10", end=1.0)
    assert str(caught.value).endswith(
        "expected one of constant, cosine, cyclical, linear, sigmoid; did you mean 'linear'?"
    )


@pytest.mark.parametrize("bad", [-1e-6, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: schedules.constant(bad),
        lambda bad: schedules.linear(bad, 1.0, 10),
        lambda bad: schedules.linear(0.0, bad, 10),
        lambda bad: schedules.cyclical(bad, 1.0, 10),
        lambda bad: schedules.cyclical(0.0, bad, 10),
        lambda bad: schedules.parse("constant", bad),
        lambda bad: schedules.parse("linear:0:10", bad),
        lambda bad: schedules.parse(f"linear:{bad}:10", 1.0),
        lambda bad: schedules.parse(f"cyclical:{bad}:10", 1.0),
    ],
    ids=[
        "constant",
        "linear-start",
        "linear-end",
        "cyclical-start",
        "cyclical-end",
        "parse-constant",
        "parse-linear",
        "parse-linear-start",
        "parse-cyclical-start",
    ],
)
def test_a_weight_below_0_or_not_finite_is_refused(make, bad):
    with pytest.raises(
        ValueError, match=r"(beta|the (start|end) of a schedule): expected a finite number of at least 0"
    ):
        make(bad)


def test_zero_is_allowed():
    assert schedules.constant(0.0)(3) == 0.0
    assert schedules.linear(1.0, 0.0, 4)(4) == 0.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: schedules.linear(0, 1, 0), "steps of a schedule: expected at least 1, got 0"),
        (lambda: schedules.parse("linear:0:-3", 1.0), "steps of a schedule: expected at least 1, got -3"),
        (lambda: schedules.cyclical(0, 1, 3, cycles=4), "cycles: expected between 1 and steps = 3, got 4"),
        (lambda: schedules.parse("cyclical:0:10:0", 1.0), "cycles: expected between 1 and steps = 10, got 0"),
        (lambda: schedules.cyclical(0, 1, 0), "cycles: expected between 1 and steps = 0, got 4"),
        (lambda: schedules.cyclical(0, 1, 10, ratio=0.0), "ratio: expected the ramp's share of a cycle"),
        (lambda: schedules.cyclical(0, 1, 10, ratio=1.1), "ratio: expected the ramp's share of a cycle"),
        (lambda: schedules.cyclical(0, 1, 10, ratio=math.nan), "ratio: expected the ramp's share of a cycle"),
    ],
)
def test_lengths_and_ratios_out_of_range_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("make", [schedules.cosine, schedules.sigmoid])
def test_smooth_ramps_begin_and_end_where_they_should(make):
    ramp = make(0.5, 4.0, 100)
    assert ramp(0) == pytest.approx(0.5)
    assert ramp(50) == pytest.approx(2.25)  # both are symmetric about the middle
    assert ramp(100) == ramp(10_000) == pytest.approx(4.0)
    values = [ramp(step) for step in range(101)]
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert all(step > 0 for step in steps)
    assert steps.index(max(steps)) in (49, 50)
    assert steps[0] < 0.2 * max(steps)
    assert steps == pytest.approx(steps[::-1])


def test_cosine_and_sigmoid_by_hand():
    assert schedules.cosine(0.0, 1.0, 4)(1) == pytest.approx(0.5 * (1 - math.cos(math.pi / 4)))
    low, high, at = (1 / (1 + math.exp(-k)) for k in (-6.0, 6.0, -3.0))
    assert schedules.sigmoid(0.0, 1.0, 4)(1) == pytest.approx((at - low) / (high - low))


def test_a_schedule_for_each_site():
    found = schedules.parse_all("linear:0:10", "z1=0.5,z2=2")
    assert found == {"z1": schedules.linear(0.0, 0.5, 10), "z2": schedules.linear(0.0, 2.0, 10)}
    assert schedules.parse_all("constant", 2.0) == schedules.constant(2.0)
    assert schedules.parse_all("constant", "3") == schedules.constant(3.0)


@pytest.mark.parametrize("beta", ["many", "z1=", "z1=x", "=2", "z1=1,z1=2", "z1=1,z2"])
def test_a_malformed_beta_for_sites_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta: expected .*, got"):
        schedules.parse_all("constant", beta)


def test_a_bad_weight_of_a_site_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        schedules.parse_all("constant", "z1=-1")
