"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Derandomised: the same examples on every machine. Longer searches are the fuzz entries' business.
settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")
