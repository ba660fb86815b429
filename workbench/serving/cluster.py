"""Ray on this machine, or the cluster that it was connected to: what services and shards run on."""

import logging
import os
import warnings

from workbench.core.optional import library

LOOPBACK = "127.0.0.1"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}


_ours = ""  # address of the cluster that this process started


def start(purpose: str = "Serving") -> tuple[str, bool]:
    """Start Ray on this machine, unless it runs already; it is reached by this machine only, and reports nothing.

    Returns:
        The cluster's address, and whether this process started it: then its processors are not counted out, since
        several replicas may share one.

    Raises:
        NotAvailable: Ray is not installed.
    """
    global _ours
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's own code is warned of, which nobody here can mend
        ray = library("ray", purpose, extra="serve")
        library("ray.serve", purpose, extra="serve")
    if ray.is_initialized():
        address = str(ray.get_runtime_context().gcs_address)
        return address, address == _ours
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 << 20,  # it carries texts
        _node_ip_address=LOOPBACK,
    )
    _ours = str(ray.get_runtime_context().gcs_address)
    return _ours, True
