from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyro_vae import VAE
from pyro_vae.evidence.criticism.predictive import PredictiveChecks, predictive_checks, replicates

SHAPE = (20, 8, 8)


def blots(density: float = 0.3, spread: float = 0.2):
    """Binary images, each with an ink of its own."""
    ink = density + spread * (2 * torch.rand(SHAPE[0], 1, 1) - 1)
    return (torch.rand(SHAPE) < ink).float()


def test_of_a_true_model_p_is_uniform():
    torch.manual_seed(0)
    check_uniform(15)


@pytest.mark.slow
def test_of_a_true_model_p_is_uniform_over_many_sets():
    torch.manual_seed(0)
    check_uniform(600)


def check_uniform(count: int):
    found = [predictive_checks(blots(), blots, num_sets=239) for _ in range(count)]
    passed = sum(f.passed for f in found) / count
    assert passed > 0.95 - 4 * math.sqrt(0.95 * 0.05 / count)
    for name in found[0].names:
        p = torch.tensor([f.p_values[name] for f in found], dtype=torch.float64).sort().values
        distance = float((p - (torch.arange(count) + 0.5) / count).abs().max())
        assert distance < 1.95 / math.sqrt(count) + 1 / 240, name  # Kolmogorov and Smirnov's 0.1 % point
        two_sided = torch.tensor([f.two_sided[name] for f in found])
        assert float((two_sided <= 0.2).double().mean()) < 0.2 + 4 * math.sqrt(0.2 * 0.8 / count)


def two_kinds():
    return blots(0.6, 0.0) * (torch.rand(SHAPE[0], 1, 1) < 0.5)


def blurred():
    return torch.nn.functional.avg_pool2d(blots()[:, None], 3, stride=1, padding=1)[:, 0]


def scrambled_blocks():
    """As much ink, in blocks of two by two pixels."""
    return blots().flatten(1).sort(1, descending=True).values.unflatten(1, (8, 8))


@pytest.mark.parametrize(
    ("wrong", "extreme"),
    [
        (lambda: blots(0.5), {"ink": 1.0}),
        (lambda: blots(0.1, 0.1), {"ink": 0.0}),
        (lambda: blots(0.3, 0.0), {"spread of ink": 0.0}),
        (two_kinds, {"spread of ink": 1.0}),
        (blurred, {"power, fine": 0.0}),
        (scrambled_blocks, {"components": 0.0, "power, coarse": 1.0, "power, fine": 0.0}),
    ],
)
def test_of_a_wrong_model_p_is_extreme(wrong, extreme):
    """The model makes too much ink, too little, images too much alike, ...: p is at the end that says so."""
    torch.manual_seed(0)
    found = predictive_checks(blots(), wrong)
    assert not found.passed
    for name, p in extreme.items():
        assert abs(found.p_values[name] - p) < 0.01
        assert name in found.failures
        assert name in found.verdict()


def test_replicates_given_the_same_images_crowd_around_a_half():
    """x ~ N(z, 1) around each image's own z ~ N(0, 9): the exact posterior, and p has a variance far below 1/12."""

    def draw(z):
        return z[:, None, None] + torch.randn(SHAPE)

    def again(x):
        precision = 64 + 1 / 9
        z = x.mean((1, 2)) * 64 / precision + torch.randn(SHAPE[0]) / math.sqrt(precision)
        return draw(z)

    torch.manual_seed(0)
    p = []
    for _ in range(12):
        x = draw(3 * torch.randn(SHAPE[0]))
        p.append(predictive_checks(x, lambda x=x: again(x), num_sets=239).p_values["ink"])
    assert float(torch.tensor(p).sub(0.5).square().mean()) < 0.1 / 12


def checks(observed: list[float], replicated: list[list[float]], level: float = 0.95) -> PredictiveChecks:
    values = torch.tensor(replicated, dtype=torch.float64)
    names = tuple("abcdef"[: len(observed)])
    spectrum = torch.ones(3, dtype=torch.float64)
    given = torch.tensor(observed, dtype=torch.float64)
    return PredictiveChecks(names, given, values, spectrum, spectrum.expand(len(values), -1), 10, level)


def test_p_values_by_hand():
    found = checks([2.0, 5.0], [[1.0, 0.0], [2.0, 1.0], [3.0, 2.0]])
    assert found.p_values == {"a": (1 + 0.5 + 0.5) / 4, "b": 0.5 / 4}
    assert found.two_sided == {"a": 1.0, "b": 0.5}


def test_the_two_sided_level_by_enumeration():
    """Of all orders of an observed value among 4 simulated ones, ties included, at most a share a has a p-value of a."""
    for values in ((0, 1, 2, 3, 4), (0, 0, 1, 2, 2)):
        p = torch.tensor([checks([o[0]], [[v] for v in o[1:]]).two_sided["a"] for o in itertools.permutations(values)])
        for a in p.unique():
            assert float((p <= a).double().mean()) <= float(a) + 1e-9


def test_holm_by_hand():
    sets = [[float(k)] * 3 for k in range(239)]
    assert checks([300.0, 300.0, 100.0], sets).failures == ("a", "b")
    assert checks([236.0, 120.0, 100.0], sets).failures == ()  # 2 * (3 + 1) / 240 is above 0.05 / 3
    assert checks([300.0, 120.0, 100.0], sets).failures == ("a",)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 6, 4)])
@pytest.mark.parametrize("latents", ["prior", "posterior"])
def test_a_vae(shape, latents):
    torch.manual_seed(0)
    vae = VAE(shape, 2, (5,)).eval()
    x = vae.sample(30)
    makes = replicates(vae, x, latents)
    assert makes().shape == x.shape
    before = torch.get_rng_state()
    found, again, other = (predictive_checks(x, makes, num_sets=239, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found.replicated, again.replicated)
    assert not torch.equal(found.replicated, other.replicated)
    assert found.num_images == 30
    assert found.replicated.shape == (239, 5)
    assert found.replicated_spectrum.shape == (239, 3)


def test_a_vae_of_its_own_images_passes_and_of_their_negatives_fails():
    torch.manual_seed(0)
    vae = VAE((1, 6, 6), 2, (5,)).eval()
    with torch.no_grad():
        vae.decoder.head.bias.add_(-1.0)
    x = vae.sample(100)
    assert predictive_checks(x, replicates(vae, x), seed=1).passed
    assert "ink" in predictive_checks(1 - x, replicates(vae, x), seed=1).failures


def test_arrays_and_functions_say_the_same():
    torch.manual_seed(0)
    x, sets = blots(), torch.stack([blots() for _ in range(240)])
    made = iter(sets)
    ours, theirs = predictive_checks(x, sets), predictive_checks(x, lambda: next(made), num_sets=240)
    assert torch.equal(ours.replicated, theirs.replicated)
    assert ours.p_values == theirs.p_values
    assert "20 images against 240 simulated sets of as many" in ours.table()
    assert all(name in ours.table() for name in ours.names)


def test_bad_input():
    with pytest.raises(ValueError, match=r"images: expected shape .* with N of at least 2, got \(1, 8, 8\)"):
        predictive_checks(torch.zeros(1, 8, 8), torch.zeros(300, 1, 8, 8))
    with pytest.raises(ValueError, match="expected at least 239 sets, .* got 100"):
        predictive_checks(blots(), blots, num_sets=100)
    with pytest.raises(ValueError, match="expected at least 239 sets, .* got 10"):
        predictive_checks(blots(), torch.zeros(10, *SHAPE))
    with pytest.raises(ValueError, match=r"sets with the shape of the images, \(20, 8, 8\), got \(8, 8\)"):
        predictive_checks(blots(), torch.zeros(6000, 8, 8))
    with pytest.raises(ValueError, match="level: expected a probability between 0 and 1, such as 0.95, got 2"):
        predictive_checks(blots(), blots, level=2)
    with pytest.raises(ValueError, match="latents: expected 'prior' or 'posterior', got 'x'"):
        replicates(VAE((1, 6, 6), 2, (5,)), torch.zeros(2, 1, 6, 6), "x")
