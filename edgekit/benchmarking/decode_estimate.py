"""Estimates how fast a language model writes on a device that is not here: memory bandwidth over bytes a token."""

from __future__ import annotations

from edgekit.benchmarking.roofline import LOWEST_EFFICIENCY
from edgekit.results import Estimate, GenerationMeasurement
from edgekit.target import Target


def estimate_decode(measurement: GenerationMeasurement, target: Target) -> list[Estimate]:
    """Returns the range of tokens a second at the deepest context measured; nothing where its bytes are not known.

    One step of decoding reads every weight that it uses and the keys and values of the context once.
    """
    depth = measurement.deepest
    if depth.bytes_per_token is None:
        return []
    bandwidth = target.memory_bandwidth_bytes_per_s.value
    most = bandwidth / depth.bytes_per_token
    return [
        Estimate(
            quantity=f"decode speed after {depth.context_tokens:,} tokens on {target.name}",
            low=most * LOWEST_EFFICIENCY,
            high=most,
            unit="tokens/s",
            formula=(
                f"{bandwidth / 1e9:.1f} GB/s / {depth.bytes_per_token / 1e6:.2f} MB a token = {most:.1f} tokens/s, "
                f"down to {LOWEST_EFFICIENCY:g} of that"
            ),
            assumptions=[
                f"Decoding reaches {100 * LOWEST_EFFICIENCY:.0f} to 100 % of the memory bandwidth of {target.cpu}.",
                "Weights, keys and values are read from memory once a token, and nothing else is.",
                "It runs at the memory's full rate, undisturbed.",
            ],
        )
    ]
