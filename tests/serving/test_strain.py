"""Services under strain: many connections, little memory, more load than replicas, several machines, a neighbour."""

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import workbench as wb
from workbench.core.errors import InvalidInput

QUESTION = "What is a lobster?"
MANY = 1000
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def service(tiny: wb.Variant, cluster: None) -> Iterator[wb.Service]:
    with wb.serve(tiny, port=0, rows=4, waiting=8) as service:
        yield service


@contextmanager
def files(number: int) -> Iterator[None]:
    """This process may hold so many open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_each_get_an_answer_or_a_refusal(service: wb.Service) -> None:
    port, path = re.search(r":(\d+)(.*)$", service.url).groups()  # type: ignore[union-attr]
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4})
    head = f"POST {path}/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    async def one(ready: asyncio.Barrier) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        await ready.wait()
        writer.write(request)
        said = await reader.read()
        writer.close()
        return int(said.split(b" ", 2)[1])

    async def all_at_once() -> list[int]:
        ready = asyncio.Barrier(MANY)
        return await asyncio.wait_for(asyncio.gather(*(one(ready) for _ in range(MANY))), 120)

    with files(2 * MANY):
        found = asyncio.run(all_at_once())
    assert set(found) <= {200, 429}
    assert found.count(200) >= 4
    assert service.endpoint().generate(QUESTION, max_new_tokens=4).spent == 4


def test_a_replica_without_memory_is_an_error_and_the_service_goes_on(service: wb.Service) -> None:
    endpoint = service.endpoint(retries=0)
    endpoint.generate(QUESTION, max_new_tokens=1)
    process = next(seat["process"] for seat in service.status()["replicas"].values() if not seat["lost"])
    replica = psutil.Process(process)
    replica.rlimit(psutil.RLIMIT_AS, (replica.memory_info().vms, -1))

    async def strain() -> list[Any]:
        asks = [endpoint.agenerate(f"{n} " * 200, max_new_tokens=100, endless=True) for n in range(12)]
        return await asyncio.gather(*asks, return_exceptions=True)

    found = asyncio.run(strain())
    assert all(isinstance(each, wb.Generation | wb.WorkbenchError) for each in found), found
    assert any(isinstance(each, wb.WorkbenchError) for each in found) or not replica.is_running()
    with suppress(psutil.NoSuchProcess):  # Ray has started another
        replica.rlimit(psutil.RLIMIT_AS, (-1, -1))
    assert service.endpoint().generate(QUESTION, max_new_tokens=4).spent == 4


def test_replicas_follow_the_load(tiny: wb.Variant, service: wb.Service) -> None:
    with wb.serve(tiny, replicas=(1, 2), rows=2) as growing:

        async def until_two_answer() -> None:
            endpoint = growing.endpoint()
            while sum(seat["done"] > 0 for seat in growing.status()["replicas"].values()) < 2:
                await asyncio.gather(*(endpoint.agenerate(QUESTION, max_new_tokens=60) for _ in range(6)))

        asyncio.run(asyncio.wait_for(until_two_answer(), 120))
        assert "1 to 2 replicas" in repr(growing)


def test_a_replica_of_several_ranks(tiny: wb.Variant, service: wb.Service) -> None:
    with pytest.raises(InvalidInput, match="can be shared by"):
        wb.serve(tiny, ranks=3)
    with pytest.raises(InvalidInput, match="rows and ranks are at least 1"):
        wb.serve(tiny, ranks=0)
    with pytest.raises(InvalidInput, match="leave ranks out"):
        wb.serve(service.endpoint(), ranks=2)
    expected = tiny.generate(QUESTION, max_new_tokens=12).text
    with wb.serve(tiny, ranks=2) as shared:
        endpoint = shared.endpoint()
        assert endpoint.generate(QUESTION, max_new_tokens=12).text == expected
        process = next(seat["process"] for seat in shared.status()["replicas"].values())
        near = psutil.Process(process).parent().children()  # not those of another Ray
        ranks = [each.pid for each in near if "ray::Rank" in str(each.cmdline())]
        assert len(ranks) == 2
        assert process not in ranks
        os.kill(ranks[1], signal.SIGKILL)
        assert endpoint.generate(QUESTION, max_new_tokens=12).text == expected  # of a replica with other ranks
        assert not psutil.pid_exists(ranks[0])
        assert not psutil.pid_exists(process)


def test_two_processes_serve_on_one_machine(service: wb.Service, folders: dict[str, Path]) -> None:
    port = service.url.rsplit(":", 1)[1].partition("/")[0]
    command = [sys.executable, "-m", "workbench", "serve", str(folders["llama"]), "--name", "other"]
    taken = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=120)
    assert taken.returncode == 1
    assert f"Port {port} of 127.0.0.1 cannot be used" in taken.stderr
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            line = next(each for each in other.stdout if each.startswith("<Service"))
            found = wb.connect(re.search(r"http://\S+/v1", line).group())  # type: ignore[union-attr]
            asked = found.generate(QUESTION, max_new_tokens=4, endless=True)
            assert asked.spent == 4
            assert service.endpoint().generate(QUESTION, max_new_tokens=4, endless=True).text == asked.text
        finally:
            other.send_signal(signal.SIGTERM)
        assert other.wait(60) == 0
    assert service.endpoint().generate(QUESTION, max_new_tokens=4).spent == 4


NODES = """
import asyncio, sys
import ray
from ray.cluster_utils import Cluster
import workbench as wb

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = nodes.add_node(num_cpus=1)
ray.init(address=nodes.address, log_to_driver=False)
service = wb.serve(sys.argv[1], replicas=2, policy="round robin", threads=1, port=0)
endpoint = service.endpoint()

async def asked():
    asks = [endpoint.agenerate("Hi", max_new_tokens=2) for _ in range(8)]
    return await asyncio.gather(*asks, return_exceptions=True)

print("replicas:", len({each.replica for each in asyncio.run(asked())}))
print("processors left:", ray.available_resources().get("CPU", 0.0))
nodes.remove_node(other, allow_graceful=False)
try:
    for _ in range(100):  # what comes before Ray has heard of it may end in an error, nothing else
        found = asyncio.run(asked())
        assert all(isinstance(each, wb.Generation | wb.WorkbenchError) for each in found), found
        if all(isinstance(each, wb.Generation) for each in found):
            print("after a node is gone:", len(found))
            break
finally:
    service.stop()
    ray.shutdown()
    nodes.shutdown()
"""


def test_replicas_on_two_nodes_and_on_the_one_that_is_left(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each node has one processor, and each replica asks for one: two replicas are on two nodes."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NODES, str(folders["llama"])],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for said in ("replicas: 2", "processors left: 0.0", "after a node is gone: 8"):
        assert said in run.stdout, run.stdout + run.stderr
