"""``python -m pyro_vae.testing``: does the machinery of the checks work here? A sound model and a fault for each law."""

from __future__ import annotations

import argparse
import sys


def main(words: list[str] | None = None) -> int:
    """Check a sound model and one fault for each law, and say what was found.

    Args:
        words: The command line's; None: from ``sys.argv``.

    Returns:
        0 if the sound model passes and each fault is caught by its law, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m pyro_vae.testing", description=main.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--samples", type=int, default=512, help="simulated pairs of each check (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    options = parser.parse_args(words)
    if options.samples < 100:
        parser.error(f"--samples: expected at least 100, got {options.samples}")
    from pyro_vae.testing.selftest import CASES, run

    failed = 0
    for name, toy, found in run(options.samples, options.seed):
        right = bool(found) if toy.law else not found
        right = right and (toy.law is None or f"law {toy.law!r}" in found[0])
        failed += not right
        verdict = f"caught by law {toy.law!r}" if toy.law else "passes"
        print(f"{'ok  ' if right else 'FAIL'} {name}: {verdict if right else 'not as it should'}")
        for sentence in found[:1]:
            print(f"       {sentence}")
    print(f"{len(CASES) - failed} of {len(CASES)} as they should")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
