"""How many forward passes an engine ran, when each of its API servers counts them by itself."""


def true_passes(observed: float, api_servers: int, sequence_passes: float) -> float:
    """Return the passes behind `observed` counts, summed over `api_servers` that share an engine.

    An API server counts a pass when one of its own requests gains a token in it. A pass over R
    sequences that are spread at random over A servers is seen by A·(1 - (1 - 1/A)^R) of them on
    average, so p passes over `sequence_passes` in all are counted p·A·(1 - (1 - 1/A)^(s/p)) times:
    solved for p, which lies between observed / A and observed.
    """
    if observed <= 0 or api_servers <= 1 or sequence_passes <= 0:
        return max(0.0, observed)
    low, high = observed / api_servers, observed
    for _ in range(60):
        middle = (low + high) / 2
        seen = middle * api_servers * (1 - (1 - 1 / api_servers) ** (sequence_passes / middle))
        if seen > observed:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def sequences_per_pass(sequence_passes: float, passes: float) -> float:
    """Return the mean number of sequences that a pass advances."""
    return sequence_passes / passes if passes > 0 else 0.0
