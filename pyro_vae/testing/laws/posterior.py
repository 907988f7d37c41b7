"""The law ``posterior``: the weights agree with exact posterior draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.testing.findings import Ledger
from pyro_vae.testing.numerics.statistics import choice_p, markov_p
from pyro_vae.testing.subject import Scores, Subject, Values, latent_sites, observed_sites

GUIDE_DRAWS = 7
CAUSES = (
    "a guide or prior that draws from another distribution than it scores (noise that is not in log q, a variance passed as "
    "a scale, a wrong Jacobian), or a likelihood with a factor that depends on z"
)


def reason_against(subject: Subject, follows: bool) -> str | None:
    """Reason why simulated data cannot replace the given data, or None.

    Args:
        subject: The program.
        follows: True if the model reads the data through observed values only.
    """
    if any(s["infer"].get("is_auxiliary") for s in latent_sites(subject.guide_trace).values()):
        return "the guide draws an auxiliary site, so that log q of a given z is not known"
    missing = [n for n, _ in observed_sites(subject.model_trace) if n not in subject.slots]
    if missing:
        return f"the observed value of {missing[0]!r} is no argument as it is; pass it as one, or name it by data="
    if not follows:
        return "the model reads its data before it draws them, so that its draws are not from its density"
    try:
        call, values, x = subject.simulate()
        placed = subject.evaluate(values, call).observed
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"the model does not draw data ({error})"
    for name, value in x.items():
        if not torch.allclose(placed[name].double(), value.double(), rtol=1e-4, atol=1e-5):
            return f"data drawn at {name!r} do not come back as its observed value"
    return None


def check_posterior(subject: Subject, num_samples: int, ledger: Ledger) -> None:
    r"""Test the weights of exact posterior draws among draws of the guide.

    Pairs (x, z*) are drawn from the model.

    Given the unordered set, z* is candidate j with probability :math:`w_j / \sum_j w_j`, whatever the guide; hence
    also :math:`E[w(z) / w(z^*)] = 1` and :math:`E[\log w(z^*)] \ge E[\log w(z)]`.
    """
    law = "posterior"
    size = subject.data_plate.size
    rounds = [_candidates(subject) for _ in range(min(64, math.ceil(num_samples / size)))]
    log_w = torch.cat([torch.stack([s.log_w.double() for s, _ in r], 1) for r in rounds]).clamp(-1e6, 1e6)
    # Leaving out a pair depends on its unordered set only, so the choice within it stays exact.
    kept = ~log_w.isnan().any(1)
    if float(kept.double().mean()) < 0.5:
        share = 100 * (1 - float(kept.double().mean()))
        figures = f"it is NaN on {share:.0f} % of the data drawn from the model"
        ledger.breaks(law, "log w", figures, "an overflow of exp, or a scale of 0")
        return
    log_w = log_w[kept]
    others = log_w[:, 1:].logsumexp(1) - math.log(log_w.shape[1] - 1)
    figures = f"on {len(log_w)} simulated pairs mean log w is {_mean(log_w[:, 0])} at the posterior's draws"
    figures = f"{figures} and {_mean(log_w[:, 1:])} at the guide's"
    ledger.tests(law, "log w", choice_p(log_w, log_w.log_softmax(1)), figures, CAUSES)
    ledger.tests(law, "log w, E[w(z) / w(z*)] <= 1", markov_p(others - log_w[:, 0]), figures, CAUSES)
    for name in rounds[0][0][1]:
        score = torch.cat([torch.stack([numbers[name].double() for _, numbers in r], 1) for r in rounds])[kept]
        chosen, expected = score[:, 0].mean(), (log_w.softmax(1) * score).nan_to_num().sum(1).mean()
        figures = f"it is {float(chosen):.4g} on average at the posterior's draws, {float(expected):.4g} by the weights"
        ledger.tests(law, name, choice_p(log_w, score.clamp(-1e6, 1e6)), figures, CAUSES)


def _mean(values: Tensor) -> str:
    return f"{float(values.mean()):.4g}"


def _candidates(subject: Subject) -> list[tuple[Scores, dict[str, Tensor]]]:
    """Posterior draw, then guide draws, of a simulated batch, and statistics."""
    call, values, _ = subject.simulate()
    draws = [(values, subject.evaluate(values, call)), *(subject.draw(call) for _ in range(GUIDE_DRAWS))]
    return [(scores, _numbers(subject, values, scores)) for values, scores in draws]


def _numbers(subject: Subject, values: Values, scores: Scores) -> dict[str, Tensor]:
    """Terms of log w and latent sums by name, shape ``(B,)``."""
    found = {f"the log-probability of {name}": term for name, term in scores.parts().items()}
    for name, site in latent_sites(subject.guide_trace).items():
        value = values[name].double()
        inner = value.flatten(value.dim() - site["fn"].event_dim).sum(-1) if site["fn"].event_dim else value
        found[f"the value of site {name!r}"] = subject.data_plate.per_datum(inner)[0]
    return found
