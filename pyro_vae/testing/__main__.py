"""The command ``python -m pyro_vae.testing``: self-test of the package on this machine.

The checks run on a sound model and on one fault for each law. Every objective and every estimator is compared with
the exact values of a linear-Gaussian VAE.
"""

from __future__ import annotations

import argparse
import sys


def main(words: list[str] | None = None) -> int:
    """Test objectives and estimators against exact values, checks against faults.

    Args:
        words: The command-line arguments; None: ``sys.argv``.

    Returns:
        0 if every figure agrees with its exact value within its error, the sound model passes, and each law catches its
        fault; else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m pyro_vae.testing", description=main.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--samples", type=int, default=512, help="simulated pairs of each check, draws of each estimate (default: 512)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    options = parser.parse_args(words)
    if options.samples < 100:
        parser.error(f"--samples: expected at least 100, got {options.samples}")
    return int(_figures(options.samples, options.seed) + _faults(options.samples, options.seed) > 0)


def _figures(samples: int, seed: int) -> int:
    """Print the table of figures; return the number of wrong ones."""
    from pyro_vae.testing.selftest.linear_gaussian import HEADER, LIMIT
    from pyro_vae.testing.selftest.table import chance, measure

    print(f"Objectives and estimators on a linear-Gaussian VAE, where all is exact; wrong: {LIMIT} standard errors off")
    print(HEADER)
    lines = []
    for line in measure(samples, seed):
        print(line, flush=True)
        lines.append(line)
    failed = sum(not line.right for line in lines)
    luck = f"by chance one table in {1 / chance(lines):.0f} has a figure that is not"
    print(f"{len(lines) - failed} of {len(lines)} figures as they should; {luck}\n")
    return failed


def _faults(samples: int, seed: int) -> int:
    """Print the verdict on each fault; return the number of wrong ones."""
    from pyro_vae.testing.selftest.faults import CASES, run

    print("The checks of check_elbo_bounds, on a sound model and on a fault for each law")
    failed = 0
    for name, toy, found in run(samples, seed):
        right = bool(found) if toy.law else not found
        right = right and (toy.law is None or f"law {toy.law!r}" in found[0])
        failed += not right
        verdict = f"caught by law {toy.law!r}" if toy.law else "passes"
        print(f"{'ok  ' if right else 'FAIL'} {name}: {verdict if right else 'not as it should'}")
        for sentence in found[:1]:
            print(f"       {sentence}")
    print(f"{len(CASES) - failed} of {len(CASES)} as they should")
    return failed


if __name__ == "__main__":
    sys.exit(main())
