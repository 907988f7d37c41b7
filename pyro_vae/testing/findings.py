"""Findings of the checks: laws held, broken, or not checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pyro_vae.testing.numerics.statistics import holm

#: The laws, in the order in which they are checked.
LAWS: dict[str, str] = {
    "structure": "guide and model agree on latent sites, shapes, supports and plates",
    "posterior": "among guide draws, the exact posterior draw is found in proportion to the importance weights",
    "exact": "the mean of w / p(x) is 1",
    "independence": "changing one datum moves no other datum's log w",
    "invariance": "row order, batch split and subsampling change no datum's loss",
    "kl": "analytic and sampled KL agree, and model and guide have the same KL weight",
    "gradients": "pathwise and score-function gradients agree, and every parameter has a gradient",
    "likelihood": "each density is normalized and depends on its site's value and parents only; data are scored once",
    "instances": "a second instance trains its own parameters",
}

#: A law is broken by a t test only if a repetition with fresh draws has a p-value of at most this.
CONFIRMED = 0.01

State = Literal["held", "broken", "not checked"]


@dataclass(frozen=True)
class Finding:
    """Result of checking one law at one place of the program.

    Attributes:
        law: Name of the law, a key of ``LAWS``.
        state: ``"held"``, ``"broken"`` or ``"not checked"``.
        site: The place: a site, a parameter, or a part of the program.
        figures: The measured figures; if the law was not checked, the reason.
        causes: Usual causes and remedies; empty unless the law is broken.
        p_value: p-value of the statistical test; None if the check is exact.
    """

    law: str
    state: State
    site: str
    figures: str
    causes: str = ""
    p_value: float | None = None

    def __str__(self) -> str:
        if self.state == "not checked":
            return f"law {self.law!r} was not checked at {self.site}: {self.figures}."
        if self.state == "held":
            return f"law {self.law!r} holds at {self.site}: {self.figures}."
        return f"law {self.law!r} ({LAWS[self.law]}) is broken at {self.site}: {self.figures}. Usual causes: {self.causes}."


@dataclass(frozen=True)
class Report:
    """All findings of one call of ``check_elbo_bounds``.

    Attributes:
        findings: The findings, in the order of the checks.
        false_alarms: Probability that a sound program fails, over all statistical tests of the call.
    """

    findings: tuple[Finding, ...]
    false_alarms: float

    def _in(self, state: State) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.state == state)

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings of broken laws."""
        return self._in("broken")

    @property
    def held(self) -> tuple[Finding, ...]:
        """Findings of laws that were checked and hold."""
        return self._in("held")

    @property
    def not_checked(self) -> tuple[Finding, ...]:
        """Findings of laws that could not be checked; ``figures`` gives the reason."""
        return self._in("not checked")

    @property
    def laws(self) -> dict[str, State]:
        """State of each law.

        A law is broken if it is broken at any place. Otherwise it is held if it holds at any place.
        """
        states: dict[str, State] = {}
        for law in LAWS:
            found = {f.state for f in self.findings if f.law == law}
            states[law] = "broken" if "broken" in found else "held" if "held" in found else "not checked"
        return states

    def __str__(self) -> str:
        tests = sum(f.p_value is not None for f in self.findings)
        lines = [f"{tests} tests with a joint false-alarm rate of {self.false_alarms:g}"]
        return "\n".join([*lines, *map(str, (*self.broken, *self.held, *self.not_checked))])


class BrokenBound(AssertionError):
    """Error for a program that breaks a law; ``report`` has all findings."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__("\n".join(map(str, report.broken)))


def one_line(text: str) -> str:
    """Join an error's text to one line, without Pyro's table of shapes."""
    return " ".join(text.split("Trace Shapes:")[0].split()).rstrip(". (")


class Ledger:
    """Collector of the findings of one call.

    :meth:`close` judges all statistical tests together, by Holm's method.
    """

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._again: dict[int, Callable[[], float]] = {}

    def holds(self, law: str, site: str, figures: str) -> None:
        """Record that a law holds by an exact check.

        An exact check needs no statistical test.
        """
        self._findings.append(Finding(law, "held", site, figures))

    def skips(self, law: str, site: str, why: str) -> None:
        """Record that a law could not be checked, with the reason ``why``."""
        self._findings.append(Finding(law, "not checked", site, one_line(why)))

    def breaks(self, law: str, site: str, figures: str, causes: str) -> None:
        """Record that a law is broken by an exact check.

        An exact check needs no statistical test.
        """
        self._findings.append(Finding(law, "broken", site, one_line(figures), causes))

    def tests(
        self,
        law: str,
        site: str,
        p_value: float,
        figures: str,
        causes: str,
        again: Callable[[], float] | None = None,
    ) -> None:
        """Record a statistical test of a law, to be judged by :meth:`close`.

        Args:
            law: Name of the law.
            site: The place: a site, a parameter or a part of the program.
            p_value: p-value of the test.
            figures: The measured figures.
            causes: The usual causes, if the law is broken.
            again: Function that repeats the test with fresh draws and returns its p-value. Pass it with an approximate test,
                since a t test of skewed values rejects too often. The law is then broken only if the second p-value is at
                most ``CONFIRMED`` too.
        """
        if again is not None:
            self._again[len(self._findings)] = again
        p = 0.0 if math.isnan(p_value) else p_value  # NaN is no evidence for the law
        self._findings.append(Finding(law, "held", site, figures, causes, p))

    @property
    def any_broken(self) -> bool:
        """True if an exact check has found a broken law."""
        return any(f.state == "broken" for f in self._findings)

    def close(self, false_alarms: float) -> Report:
        """Judge all recorded tests together, by Holm's method.

        Args:
            false_alarms: Family-wise level: probability that a sound program is reported to break a law.

        Returns:
            The report of all findings.
        """
        p_values = [f.p_value for f in self._findings if f.p_value is not None]
        rejected = iter(holm(p_values, false_alarms))
        done = []
        for i, f in enumerate(self._findings):
            if f.p_value is not None:
                confirmed = next(rejected) and (i not in self._again or self._again[i]() <= CONFIRMED)
                state: State = "broken" if confirmed else "held"
                figures = f"{f.figures}, p = {f.p_value:.1e}, one of {len(p_values)} tests"
                f = Finding(f.law, state, f.site, figures, f.causes if state == "broken" else "", f.p_value)
            done.append(f)
        return Report(tuple(done), false_alarms)
