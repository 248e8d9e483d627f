"""`python -m kbo_pipeline_tests.tools.chains`: plays random chains, one seed after the other.

Each seed is a chain. One that fails is printed with its error, and what to type to play it again.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from kbo_pipeline_tests.tools.chains.chain import EVENTS_OF_A_CHAIN, Chain


def play(seed: int, events: int = EVENTS_OF_A_CHAIN) -> Counter[str]:
    """Plays the chain of a seed; what it did and compared."""
    with tempfile.TemporaryDirectory(prefix="kbo-chain-") as directory:
        chain = Chain(Path(directory), seed)
        chain.run(events)
        return chain.counts


def _played(seed: int) -> tuple[Counter[str], str]:
    try:
        return play(seed), ""
    except Exception:  # of whatever kind: it is what we look for
        return Counter(), traceback.format_exc()


def main() -> None:
    """Plays them, prints what was done; ends with 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--chains", type=int, default=100, help="how many")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    seeds = range(options.first, options.first + options.chains)
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for done, (seed, (found, error)) in enumerate(
            zip(seeds, pool.map(_played, seeds), strict=True), start=1
        ):
            counts += found
            if error:
                failed += 1
                print(f"{error}seed {seed}: --first {seed} --chains 1", flush=True)
            if done % 10 == 0 or done == len(seeds):
                seconds = time.monotonic() - began
                print(
                    f"{done} chains, {failed} failed, {seconds:.0f} s: {dict(counts)}", flush=True
                )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
