"""Settings of all tests."""

import os

from hypothesis import HealthCheck, settings

# No deadlines: the machines are shared. In CI the examples are the same each time; elsewhere they keep looking.
settings.register_profile(
    "gatecast", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gatecast")
