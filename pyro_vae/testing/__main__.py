"""Self-test: compare the package with exact values on this machine.

Every objective and every estimator is compared with the exact values of a
linear-Gaussian VAE. The checks of the bound then run on a sound model
and on one faulty model for each law.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pyro_vae.cli import command, parser
from pyro_vae.system.signals import Signals


@dataclass(frozen=True)
class Arguments:
    """The values of the command line."""

    samples: int = 512
    """Number of simulated pairs for each check, and draws for each estimate."""
    seed: int = 0
    """Seed of the draws."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the self-test.

    Args:
        argv: Command-line arguments; None: those of the process.

    Returns:
        The exit code. 0: every figure agrees with its exact value within its error, the sound model passes, and every faulty
        model fails by the expected law. 1: at least one of these failed. 2: bad input.
    """
    return command.run("pyro_vae.testing", _test, argv, "before the last check.")


def _test(words: Sequence[str], _signals: Signals, _held: ExitStack) -> int:
    with command.input_errors():
        args = parser.parse(Arguments(), words, prog="python -m pyro_vae.testing", description=__doc__)
        if args.samples < 100:
            raise ValueError(f"--samples: expected at least 100, got {args.samples}.")
    return int(_figures(args.samples, args.seed) + _faults(args.samples, args.seed) > 0)


def _figures(samples: int, seed: int) -> int:
    """Print the table of figures; return the number of wrong figures."""
    from pyro_vae.testing.selftest.linear_gaussian import HEADER, LIMIT
    from pyro_vae.testing.selftest.table import chance, measure

    print(
        f"Objectives and estimators on a linear-Gaussian VAE; FAIL: over {LIMIT} standard errors from the exact value"
    )
    print(HEADER)
    lines = []
    for line in measure(samples, seed):
        print(line, flush=True)
        lines.append(line)
    failed = sum(not line.right for line in lines)
    luck = f"by chance, one correct table in {1 / chance(lines):.0f} has a figure that fails"
    print(f"{len(lines) - failed} of {len(lines)} figures agree with the exact value; {luck}\n")
    return failed


def _faults(samples: int, seed: int) -> int:
    """Check sound and faulty models; return the number of wrong results."""
    from pyro_vae.testing.selftest.faults import CASES, run

    print("check_elbo_bounds, on a sound model and on a faulty model for each law")
    failed = 0
    for name, toy, found in run(samples, seed):
        right = bool(found) if toy.law else not found
        right = right and (toy.law is None or f"law {toy.law!r}" in found[0])
        failed += not right
        verdict = f"caught by law {toy.law!r}" if toy.law else "passes"
        print(f"{'ok  ' if right else 'FAIL'} {name}: {verdict if right else 'unexpected result'}")
        for sentence in found[:1]:
            print(f"       {sentence}")
    print(f"{len(CASES) - failed} of {len(CASES)} as expected")
    return failed


if __name__ == "__main__":
    sys.exit(main())
