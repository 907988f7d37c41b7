"""The picture of a comparison shows its intervals and weights."""

from __future__ import annotations

from pyro_vae.evidence import importance_sampling
from pyro_vae.evidence.comparison import compare
from pyro_vae.report.figures.comparison import comparison
from pyro_vae.report.pictures import write_figure
from tests.oracles import LinearGaussian
from tests.report.examples import (
    drawn_text,
)

ORACLE = LinearGaussian()


def test_a_comparison_shows_intervals_and_weights(tmp_path):
    x = ORACLE.draw(40)
    estimates = {
        "first": importance_sampling(ORACLE.model, ORACLE.guide(0.1, 1.1), x, num_samples=100),
        "second": importance_sampling(
            LinearGaussian(scale=0.8).model, LinearGaussian(scale=0.8).guide(), x, num_samples=100
        ),
    }
    found = compare(estimates, reference="first")
    figure = comparison(found)
    text = drawn_text(figure)
    assert "first, the reference" in text
    assert f"{found['second'].weight:.2f}" in text
    assert "cannot be trusted" not in text
    row = found["second"]
    ends = [line.get_xdata() for line in figure.axes[0].lines]
    assert any(list(pair) == [row.lower, row.upper] for pair in ends)
    narrow = importance_sampling(ORACLE.model, ORACLE.guide(0.0, 0.4), x, num_samples=100)
    assert "cannot be trusted" in drawn_text(comparison(compare({**estimates, "narrow": narrow})))
    assert write_figure(tmp_path / "compare.png", figure).stat().st_size > 5_000
    given = compare({**estimates, "narrow": narrow}, evidence="log p(x|y)")
    for text in (given.table(), drawn_text(comparison(given))):
        assert text.count("log p(x|y)") >= 2
        assert "log p(x)" not in text
