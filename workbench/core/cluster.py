"""Ray on this machine, or the cluster that it was connected to: what services, shards and searches run on."""

import logging
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

from workbench.core.errors import NotAvailable, first_line
from workbench.core.optional import library

OWN = {  # of a cluster that is started here; each is as the user has set it, where that was done
    "RAY_AUTH_MODE": "token",  # who reaches a port of Ray's may run anything, unless asked for a token
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on these systems, all of its ports are on the loopback address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # replicas are what people wait for
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # pieces go from replica to front so for half of what Ray's own way takes
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",  # the front's own will do: nothing there takes long
    "RAY_prestart_worker_first_driver": "0",  # idle processes: none of ours could be one, for each has its settings
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(1 << 30),  # else a notebook ends when Ray has been gone for a minute
}

ROOT = Path(__file__).parents[2]

_ours = ""  # address of the cluster that this process started


def start(purpose: str = "Serving") -> tuple[str, bool]:
    """Start Ray on this machine, unless it runs already; it reports nothing.

    What listens for Ray's own messages does so on the loopback address, but for one port of each of Serve's replicas,
    which Ray opens everywhere; all of them ask for a token that only this process and its children know.

    Returns:
        The cluster's address, and whether this process started it: then its processors are not counted out, since
        several replicas may share one.

    Raises:
        NotAvailable: Ray is not installed, or cannot be started.
    """
    global _ours
    if not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):  # else it has its own
        for name, value in OWN.items():
            os.environ.setdefault(name, value)
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):  # else Ray writes a public one
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's own code is warned of, which nobody here can mend
        ray = library("ray", purpose, extra="serve")
        library("ray.serve", purpose, extra="serve")
    logging.getLogger("ray.serve").addFilter(_grave)  # Serve sets its level anew whenever it starts
    if ray.is_initialized():
        address = str(ray.get_runtime_context().gcs_address)
        return address, address == _ours
    _lasting(ray.init)
    _ours = str(ray.get_runtime_context().gcs_address)
    return _ours, True


def actor(device: str) -> dict[str, Any]:
    """Options of an actor on this machine, with a GPU for itself or none; Ray has to be started.

    Args:
        device: "cpu" or "cuda".
    """
    ray = library("ray", "An actor", extra="serve")
    strategies = library("ray.util.scheduling_strategies", "An actor", extra="serve")
    here = ray.get_runtime_context().get_node_id()
    path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return {
        "num_cpus": 0,
        "num_gpus": 1 if device == "cuda" else 0,
        "max_restarts": 0,
        "scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node_id=here, soft=False),
        "runtime_env": {"env_vars": {"PYTHONPATH": path, **hidden}},
    }


def _grave(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _lasting(init: Callable[..., object]) -> None:
    """Start Ray's processes from a thread that never ends: the kernel kills them together with the thread's."""
    done: Queue[Exception | None] = Queue()

    def run() -> None:
        for last in (False, True):
            try:
                init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=100 << 20,  # it carries texts
                )
                break
            except Exception as error:
                if last or "timed out" not in str(error):
                    done.put(error)
                    return
                sys.modules["ray"].shutdown()  # on a busy machine it may take longer than the 30 s that Ray waits
        done.put(None)
        threading.Event().wait()

    threading.Thread(target=run, name="workbench-ray", daemon=True).start()
    if (error := done.get()) is not None:
        raise NotAvailable(f"Ray cannot be started: {first_line(error)}.") from None
