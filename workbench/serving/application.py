"""What Ray Serve needs to know of a service: a front, replicas behind it, and how one is chosen for a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from workbench.core.errors import InvalidInput, NotAvailable, first_line
from workbench.serving.replica import Replica, Source
from workbench.serving.wire import ANSWERS

POLICIES: Mapping[str, str] = {
    "power of two": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    "round robin": "ray.serve.experimental.round_robin_router:RoundRobinRouter",
    "consistent hash": "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
    "prefix aware": "workbench.serving.routers:PrefixAware",
}
MANY = 10_000  # connections that wait in the front; what is beyond the queue is refused there
DRAIN = 60.0  # seconds that a replica may take to end what it has begun
SOON, LATER = 3.0, 60.0  # seconds of more, or less, to do before replicas start, or end


@dataclass(frozen=True)
class Application:
    """All that Ray Serve needs to know of a service."""

    source: Source
    replicas: int | tuple[int, int]
    policy: str
    key: str = field(repr=False)
    rows: int
    waiting: int
    timeout: float
    prefix: str
    local: bool

    def but(self, **changes: Any) -> "Application":
        """The same with something changed, checked like a new one."""
        return replace(self, **changes)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InvalidInput(f"There is no policy '{self.policy}': use one of {', '.join(POLICIES)}.")
        low, high = self.bounds
        if not 1 <= low <= high <= 1000:
            raise InvalidInput("A service has 1 to 1000 replicas, or from fewer to more of them: (1, 4).")
        if min(self.rows, self.source.ranks) < 1 or self.waiting < 0 or not self.timeout > 0:
            raise InvalidInput(
                "rows and ranks are at least 1, waiting at least 0, and timeout a number of seconds above 0."
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas, self.replicas)

    @property
    def number(self) -> dict[str, Any]:
        """How many replicas there are, as Ray Serve wants it said."""
        if not isinstance(self.replicas, tuple):
            return {"num_replicas": self.replicas}
        low, high = self.replicas
        busy = max(1, self.rows // 2)  # requests of a replica beyond which another is started
        scaling = {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": busy}
        return {"autoscaling_config": scaling | {"upscale_delay_s": SOON, "downscale_delay_s": LATER}}

    def run(self, name: str) -> None:
        """Have Ray Serve run this; where it runs already, replica by replica.

        Raises:
            NotAvailable: the replicas cannot start.
        """
        from ray import serve
        from ray.serve.config import RequestRouterConfig

        from workbench.serving.front import Ingress, Settings, digest

        actor: dict[str, Any] = {"num_cpus": 0 if self.local else self.source.threads}
        if self.source.device.startswith("cuda") and self.source.ranks == 1:  # ranks have a GPU each
            # Replicas share the GPUs of this machine; a cluster, whose GPUs are not known, gives one to each.
            actor["num_gpus"] = min(1.0, max(1, torch.cuda.device_count()) / self.bounds[1]) if self.local else 1.0
        router = RequestRouterConfig(request_router_class=POLICIES[self.policy])  # type: ignore[arg-type]
        deployment: Any = serve.deployment
        answering = deployment(
            _Served,
            name=ANSWERS,
            **self.number,
            ray_actor_options=actor,
            max_ongoing_requests=self.rows,
            max_queued_requests=self.waiting,
            graceful_shutdown_timeout_s=DRAIN,
            health_check_period_s=2.0,
            health_check_timeout_s=30.0,
            request_router_config=router,
        )
        front = deployment(
            Ingress,
            name="front",
            num_replicas=1,
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=MANY,
            graceful_shutdown_timeout_s=DRAIN,
        )
        settings = Settings(self.source.name, digest(self.key) if self.key else "", self.timeout)
        try:
            serve.run(
                front.bind(answering.bind(self.source), settings),
                name=name,
                route_prefix=self.prefix,
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
        except RuntimeError as error:
            raise NotAvailable(f"The replicas could not start: {first_line(error, 1000)}.") from None


class _Served(Replica):
    """A replica with the name and the health check that Ray Serve asks for."""

    def __init__(self, source: Source) -> None:
        from ray import serve

        super().__init__(source, serve.get_replica_context().replica_id.unique_id)

    def check_health(self) -> None:
        """Called by Ray every few seconds; an error has the replica replaced."""
        self.check()
