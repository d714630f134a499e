"""Ray on this machine, for tests whose calls use it and leave it running: a start takes seconds."""

import os
from contextlib import contextmanager


@contextmanager
def local_ray(num_cpus):
    """Yield Ray's module, connected to a cluster of this process alone."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR", object_store_memory=128 << 20,
    )  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()
