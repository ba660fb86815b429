"""Which replica gets a request: Ray's own ways by their names, and one that looks at what a request begins with.

Imported by the processes of a service only: Ray comes with an extra.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

BLOCK = 256  # characters that are known or not, as a whole
MOST_BLOCKS = 20_000  # remembered of each replica
IMBALANCE = 4  # requests that the replica that knows most may have more than the one with fewest


class PrefixAware(FIFOMixin, RequestRouter):
    """The replica that has read most of a request's beginning, unless it has too much to do; then the idlest.

    What each replica was given is remembered in blocks of text, each under a hash of itself and all that stands before
    it, as in SGLang and vLLM's routers; the oldest are forgotten first.

    Source: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", 2024, section 3.
    """

    def initialize_state(self, imbalance: int = IMBALANCE, **_: Any) -> None:
        """Called by Ray with the settings of this router."""
        self._imbalance = imbalance
        self._read: dict[ReplicaID, OrderedDict[bytes, None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which they are tried; Ray takes the idlest of a group that has room."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        blocks = hashes(text_of(pending_request.args))
        known = {each.replica_id: self._known(each.replica_id, blocks) for each in candidate_replicas}
        most = max(known.values())
        best = [each for each in candidate_replicas if known[each.replica_id] == most]
        if not most or self._load(best) - self._load(candidate_replicas) > self._imbalance:
            return [candidate_replicas]
        return [best, [each for each in candidate_replicas if each not in best]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember what a replica was given."""
        read = self._read.setdefault(replica_id, OrderedDict())
        for each in reversed(hashes(text_of(pending_request.args))):  # a beginning is worth more than what follows it
            read[each] = None
            read.move_to_end(each)
        while len(read) > MOST_BLOCKS:
            read.popitem(last=False)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica."""
        super().on_replica_actor_died(replica_id)
        self._read.pop(replica_id, None)

    def _known(self, replica: ReplicaID, blocks: list[bytes]) -> int:
        """How many blocks from the start a replica has read."""
        read = self._read.get(replica, OrderedDict())
        return next((at for at, each in enumerate(blocks) if each not in read), len(blocks))

    def _load(self, replicas: list[RunningReplica]) -> int:
        """Requests of the one that has fewest, as far as is known."""
        return min(self.replica_queue_len_cache.get(each.replica_id) or 0 for each in replicas)


def hashes(text: str) -> list[bytes]:
    """One of each whole block of a text, and of all that stands before it."""
    found, state = [], blake2b(digest_size=8)
    for at in range(0, len(text) - BLOCK + 1, BLOCK):
        state.update(text[at : at + BLOCK].encode(errors="replace"))
        found.append(state.copy().digest())
    return found


def text_of(arguments: list[Any]) -> str:
    """What a request on its way to a replica asks."""
    from workbench.serving.wire import Ask

    return Ask.model_validate(arguments[0]).text if arguments and isinstance(arguments[0], dict) else ""
