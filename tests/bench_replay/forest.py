"""Random traces: conversations that grow, fork and share beginnings."""

from __future__ import annotations

import random

from benches.replay.trace import Request, request


def trace(rng: random.Random, *, num_requests: int, most: int) -> list[Request]:
    """Chains of at most so many blocks; each begins anew, repeats, extends or forks one of the last few."""
    fresh = iter(range(1, 1 << 40))
    chains: list[tuple[int, ...]] = []
    requests = []
    for number in range(num_requests):
        kind = rng.choice(("new", "extend", "extend", "fork", "repeat"))
        known = rng.choice(chains[-8:]) if chains else ()
        if kind == "new" or not known:
            known = ()
        elif kind == "fork":
            known = known[: rng.randint(1, len(known))]
        grown = 0 if kind == "repeat" and known else rng.randint(1, 5)
        chain = (*known, *(next(fresh) for _ in range(grown)))[:most]
        chains.append(chain)
        prompt = 256 * len(chain) + rng.choice((0, 1, 200))
        requests.append(request(chain, number, prompt=prompt, output=rng.choice((0, 0, 300))))
    return requests
