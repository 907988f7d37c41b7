"""The law ``posterior``: the importance weights agree with exact posterior draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.numerics.statistics import choice_p, markov_p
from pyro_vae.testing.subject import Scores, Subject, Values, latent_sites, observed_sites

GUIDE_DRAWS = 7
CAUSES = (
    "a guide or prior whose draws do not follow its log_prob (noise that is not in log q, a variance passed as a scale, a "
    "wrong Jacobian), or a likelihood with a factor that depends on z"
)


def reason_against(subject: Subject, follows: bool) -> str | None:
    """Return the reason why data cannot be simulated; None if they can.

    Args:
        subject: The program.
        follows: True if the model reads the data only through observed values.
    """
    if any(s["infer"].get("is_auxiliary") for s in latent_sites(subject.guide_trace).values()):
        return "the guide draws an auxiliary site, so log q of a given z is unknown"
    missing = [n for n, _ in observed_sites(subject.model_trace) if n not in subject.slots]
    if missing:
        return (
            f"no argument equals the observed value of {missing[0]!r}; pass the observed value itself as an argument, or name "
            "the argument by data="
        )
    if not follows:
        return "the model reads the data outside their observed site, so draws from the model do not follow its density"
    try:
        call, values, x = subject.simulate()
        placed = subject.evaluate(values, call).observed
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"drawing data from the model fails ({error})"
    for name, value in x.items():
        if not torch.allclose(placed[name].double(), value.double(), rtol=1e-4, atol=1e-5):
            return f"data drawn at {name!r} and passed as arguments do not become the observed value again"
    return None


def check_posterior(subject: Subject, num_samples: int, ledger: Ledger) -> None:
    r"""Test the importance weights by exact posterior draws.

    If the pair (x, z*) is drawn from the model, z* is an exact draw from p(z|x). Mix z* with several guide draws for the
    same x: given this mixture, draw j is z* with probability :math:`w_j / \sum_i w_i`, whatever the guide. Two
    consequences are :math:`E[w(z) / w(z^*)] = 1` and :math:`E[\log w(z^*)] \ge E[\log w(z)]`, where z is a guide draw.
    """
    law = "posterior"
    size = subject.data_plate.size
    rounds = [_candidates(subject) for _ in range(min(64, math.ceil(num_samples / size)))]
    log_w = torch.cat([torch.stack([s.log_w.double() for s, _ in r], 1) for r in rounds]).clamp(-1e6, 1e6)
    # A pair is left out if any of its draws has a NaN weight. The choice of z* plays no part, so the test stays exact.
    kept = ~log_w.isnan().any(1)
    if float(kept.double().mean()) < 0.5:
        share = 100 * (1 - float(kept.double().mean()))
        figures = f"it is NaN on {share:.0f} % of the data drawn from the model"
        ledger.breaks(law, "log w", figures, "an overflow of exp, or a scale of 0")
        return
    log_w = log_w[kept]
    others = log_w[:, 1:].logsumexp(1) - math.log(log_w.shape[1] - 1)
    figures = f"on {len(log_w)} simulated pairs mean log w is {_mean(log_w[:, 0])} at posterior draws"
    figures = f"{figures} and {_mean(log_w[:, 1:])} at guide draws"
    ledger.tests(law, "log w", choice_p(log_w, log_w.log_softmax(1)), figures, CAUSES)
    ledger.tests(law, "log w, E[w(z) / w(z*)] <= 1", markov_p(others - log_w[:, 0]), figures, CAUSES)
    for name in rounds[0][0][1]:
        score = torch.cat([torch.stack([numbers[name].double() for _, numbers in r], 1) for r in rounds])[kept]
        chosen, expected = score[:, 0].mean(), (log_w.softmax(1) * score).nan_to_num().sum(1).mean()
        figures = f"its mean is {float(chosen):.4g} over posterior draws"
        figures = f"{figures} and {float(expected):.4g} over all draws with their importance weights"
        ledger.tests(law, name, choice_p(log_w, score.clamp(-1e6, 1e6)), figures, CAUSES)


def _mean(values: Tensor) -> str:
    return f"{float(values.mean()):.4g}"


def _candidates(subject: Subject) -> list[tuple[Scores, dict[str, Tensor]]]:
    """Simulate a batch; evaluate its posterior draw and several guide draws.

    Returns:
        An entry for each draw, the posterior draw first: log-probabilities, and the statistics of :func:`_numbers`.
    """
    call, values, _ = subject.simulate()
    draws = [(values, subject.evaluate(values, call)), *(subject.draw(call) for _ in range(GUIDE_DRAWS))]
    return [(scores, _numbers(subject, values, scores)) for values, scores in draws]


def _numbers(subject: Subject, values: Values, scores: Scores) -> dict[str, Tensor]:
    """Return the test statistics of one draw, by name.

    Returns:
        The log-probability of each site, and the sum of each latent value over its entries; each of shape ``(B,)``.
    """
    found = {f"the log-probability of {name}": term for name, term in scores.parts().items()}
    for name, site in latent_sites(subject.guide_trace).items():
        value = values[name].double()
        inner = value.flatten(value.dim() - site["fn"].event_dim).sum(-1) if site["fn"].event_dim else value
        found[f"the value of site {name!r}"] = subject.data_plate.per_datum(inner)[0]
    return found
