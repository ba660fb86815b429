"""Ray on this machine, or the cluster that it was connected to: what services and shards run on."""

import logging
import os
from typing import Any

from workbench.core.optional import library

LOOPBACK = "127.0.0.1"


def start(purpose: str = "Serving") -> tuple[Any, bool]:
    """Ray, started on this machine unless it runs already; it is reached by this machine only, and reports nothing.

    Returns:
        The library, and whether this process started it: then its processors are not counted out, since a few requests
        at a time can share one.

    Raises:
        NotAvailable: Ray is not installed.
    """
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
        os.environ.setdefault(name, value)
    ray = library("ray", purpose, extra="serve")
    if ray.is_initialized():
        return ray, bool(getattr(start, "ours", False))
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 << 20,  # it carries texts
        _node_ip_address=LOOPBACK,
    )
    start.ours = True  # type: ignore[attr-defined]
    return ray, True
