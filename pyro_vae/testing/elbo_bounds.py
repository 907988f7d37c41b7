"""``check_elbo_bounds``: check a model and guide against all laws."""

from __future__ import annotations

from collections.abc import Collection

import pyro
import torch

from pyro_vae.inference.program.traces import Program
from pyro_vae.system.randomness import own_randomness
from pyro_vae.testing.data_arguments import find_data
from pyro_vae.testing.findings import BrokenBound, Ledger, Report
from pyro_vae.testing.laws.batch import check_independence, check_invariance
from pyro_vae.testing.laws.data_reads import check_once, check_reading
from pyro_vae.testing.laws.derivatives import check_derivatives, check_parameter_slopes
from pyro_vae.testing.laws.exact import Exact, check_exact
from pyro_vae.testing.laws.gradients import check_gradients
from pyro_vae.testing.laws.instances import Factory, check_instances
from pyro_vae.testing.laws.kl import check_divergences, check_scales
from pyro_vae.testing.laws.likelihood import check_determinism, check_mass, check_values
from pyro_vae.testing.laws.parameters import check_parameters
from pyro_vae.testing.laws.posterior import check_posterior, reason_against
from pyro_vae.testing.laws.structure import inspect
from pyro_vae.testing.subject import Call, Subject


def check_elbo_bounds(
    model: Program,
    guide: Program,
    *args: object,
    exact: Exact | None = None,
    data: Collection[int | str] | int | str = (),
    plate: str | None = None,
    conditional: Collection[str] = (),
    without_gradient: Collection[str] = (),
    factory: Factory | None = None,
    num_samples: int = 512,
    seed: int = 0,
    false_alarms: float = 1e-3,
    **kwargs: object,
) -> Report:
    r"""Check that the ELBO is a bound: :math:`E_q[\log w] \le \log p(x)`.

    A model and guide whose ELBO is a bound obey several laws, listed in ``LAWS``; each is checked. Nothing is trained. The
    parameter store and the random generators are restored afterwards; running statistics of layers in train mode are not.

    Args:
        model: A Pyro model whose data lie in one plate.
        guide: The guide of the model.
        *args: Arguments of model and guide, with the data. Five to fifty data are enough; the laws ``independence`` and
            ``invariance`` need at least two.
        exact: The known log p(x) of each datum, shape ``(B,)``, nats; or, for a stronger test, a function that takes
            ``*args`` and ``**kwargs`` and returns it.
        data: Names or positions of the arguments that hold data, if the check does not find them by itself.
        plate: Name of the data plate; needed if several plates enclose every site.
        conditional: Model sites that may read the data in their distribution, or may score the same data as another site.
        without_gradient: Substrings of the names of parameters that may have no gradient, or only a part of it.
        factory: A function without arguments that returns a second (model, guide).
        num_samples: Number of pairs (x, z) drawn from the model, and number of draws for each sampled KL.
        seed: Seed of all draws.
        false_alarms: Probability that a sound model and guide fail, over all statistical tests of this call.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        A report of the laws that hold, and of the laws that could not be checked, with the reason.

    Raises:
        BrokenBound: If a law is broken. This ``AssertionError`` states the place, the figures and the usual causes.
        ValueError: If an option is out of range, or a site is marked for enumeration.
    """
    if num_samples < 100:
        raise ValueError(f"num_samples: expected at least 100, got {num_samples}; pass a larger number.")
    if not 0 < false_alarms < 1:
        raise ValueError(
            f"false_alarms: expected a probability between 0 and 1, got {false_alarms}; pass one such as 1e-3."
        )
    ledger, store = Ledger(), pyro.get_param_store()
    declared = [data] if isinstance(data, int | str) else list(data)
    with own_randomness(seed), store.scope(store.get_state()), pyro.validation_enabled(False):
        with torch.enable_grad():
            subject = inspect(model, guide, Call(args, kwargs), plate, ledger)
        if subject is not None:
            deterministic = _check(subject, declared, set(conditional), ledger, exact, num_samples)
            with torch.enable_grad():
                if deterministic:
                    check_parameter_slopes(subject, tuple(without_gradient), ledger)
                check_parameters(subject, tuple(without_gradient), ledger)
                check_instances(subject, factory, ledger)
        with torch.no_grad():
            report = ledger.close(false_alarms)
    if report.broken:
        raise BrokenBound(report)
    return report


def _check(
    subject: Subject, declared: list[int | str], conditional: set[str], ledger: Ledger, exact: Exact | None, num: int
) -> bool:
    """Check most laws; return True if log-probabilities are deterministic.

    Deterministic means that they depend on x and z only. The caller checks ``structure``, ``instances`` and the gradients
    with respect to parameters.
    """
    with torch.no_grad():
        check_values(subject, ledger)
        check_scales(subject, ledger)
        check_mass(subject, ledger)
        if not check_determinism(subject, ledger):
            return False
        subject, feeds = find_data(subject, declared)
        check_independence(subject, ledger)
        check_invariance(subject, ledger)
        follows = check_reading(subject, feeds, conditional, ledger)
        check_once(subject, feeds, conditional, ledger)
        if ledger.any_broken:
            return True  # further checks would only report the same fault again
        check_divergences(subject, num, ledger)
        against = reason_against(subject, follows)
        if against is None:
            check_posterior(subject, num, ledger)
        else:
            ledger.skips("posterior", "simulated data", against)
        if exact is None:
            ledger.skips("exact", "log p(x)", "exact= was not given")
        else:
            check_exact(subject, exact, against, num, ledger)
    with torch.enable_grad():
        check_derivatives(subject, ledger)
        check_gradients(subject, max(48, num // 8), ledger)
    return True
