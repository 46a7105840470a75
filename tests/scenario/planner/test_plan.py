"""`dunlin plan` from the command line to the agents: a real planner, HTTP, and a bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import uvicorn
import yaml

from dunlin import subjects, wire
from dunlin.bus.base import Bus
from dunlin.events.rpc import Connections, ConnectionsRequest, Failure, LiveConnection
from dunlin.service.http import build
from dunlin.service.metrics import Metrics
from dunlin_planner import rest_plan
from dunlin_planner.shell import Shell
from tests.fixtures.worlds import World
from tests.scenario.planner.test_shell import SYNC, running
from tests.scenario.policy.oracle import Cluster, Pod
from tests.scenario.policy.test_changes import CLIENT, FRIEND, SERVER, shop
from tests.scenario.policy.walk import facts
from tests.scenario.worlds import tell, until
from tests.unit.planner.build import switch

TOKEN = "a secret of the test"


@contextlib.asynccontextmanager
async def serving(shell: Shell, bus: Bus) -> AsyncIterator[str]:
    """The planner's REST API at a URL, with its token."""
    api, *_ = build("planner", "0", Metrics("planner", "t"), TOKEN)
    api.include_router(rest_plan.router(shell, bus))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(api, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def cli(
    url: str,
    directory: Any,
    *manifests: Any,
    options: tuple[str, ...] = (),
    secret: str = TOKEN,
) -> Any:
    """Exit code, stdout, stderr of `dunlin plan` on these."""
    file, token = directory / "m.yaml", directory / "token"
    file.write_text(yaml.safe_dump_all(manifests))
    token.write_text(secret)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dunlin.cli.main", "plan", "-f", str(file), "--url", url, *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"DUNLIN_TOKEN_FILE": str(token), "PATH": ""},
    )  # fmt: skip
    out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode()


def manifest(cluster: Cluster) -> dict[str, Any]:
    """The policy of a shop, as a file has it."""
    (policy,) = cluster.policies
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", **policy}


async def agent(bus: Bus, node: str, *items: LiveConnection) -> None:
    """Answers for one node; no items: it fails."""

    async def answer(_subject: str, data: bytes) -> bytes:
        wanted = wire.decode(data, ConnectionsRequest).ips
        if not items:
            return wire.encode(Failure(reason="ovs-vswitchd is away"))
        mine = tuple(i for i in items if not wanted or {i.source, i.destination} & {*wanted})
        return wire.encode(Connections(node=node, items=mine))

    await bus.serve(subjects.rpc("agent", "connections", node), answer)


def link(source: Any, count: int) -> LiveConnection:
    """Connections of a Pod to the server."""
    ends = {"source": ip_address(source.ips[0]), "destination": ip_address(SERVER.ips[0])}
    return LiveConnection(protocol="TCP", port=8080, count=count, **ends)


async def test_what_people_and_gates_see(world: World, bus: Bus, tmp_path: Any) -> None:
    """Verdicts, rows, exit codes; both nodes know one connection, and it counts once."""
    switches = (switch("n1"), switch("n2", 2))
    async with running(world) as shell, serving(shell, bus) as url:
        await tell(bus, *facts(shop("b", "c")), *switches, SYNC)
        await until(lambda: shell.not_ready() is None, "ready")
        code, out, _ = await cli(url, tmp_path, manifest(shop("b", "c")), options=("-o", "json"))
        assert (code, json.loads(out)["verdict"]) == (0, "none")
        # Nobody answers on the bus yet: what closes may cut.
        code, out, _ = await cli(url, tmp_path, manifest(shop("c")), options=("-o", "json"))
        assert (code, json.loads(out)["verdict"]) == (4, "unknown")
        assert {item["node"] for item in json.loads(out)["connections"]["silent"]} == {"n1", "n2"}
        code, out, _ = await cli(url, tmp_path, manifest(shop("c")), options=("--no-connections",))
        assert code == 3
        for node in ("n1", "n2"):
            await agent(bus, node, link(CLIENT, 2), link(FRIEND, 1))
        code, out, _ = await cli(url, tmp_path, manifest(shop("c")), options=("-o", "yaml"))
        answer = yaml.safe_load(out)
        assert (code, answer["verdict"], answer["connections"]["cut"]) == (4, "cuts", 2)
        (row,) = answer["connections"]["items"]
        assert (row["source"], row["destination"], row["port"]) == ("x/b", "x/a", "TCP/8080")
        (pair,) = answer["reachability"]["items"]
        assert (pair["pairs"], pair["opened"], pair["closed"]) == (1, [], ["TCP/8080"])
        code, out, _ = await cli(url, tmp_path, manifest(shop("c")))
        assert "Live connections would be cut." in out
        assert "x/client -> x/server" in out


async def test_many_workloads(world: World, bus: Bus, tmp_path: Any) -> None:
    """Above 100 rows: namespaces, unless workloads are asked for; never a row lost unsaid."""
    crowd = [Pod("x", f"p{n}", {"app": f"p{n}"}, "n1", 20 + n) for n in range(110)]
    now = shop("b")
    now.pods += crowd
    opening = manifest(shop("b"))
    opening["spec"]["ingress"] = [{"from": [{"podSelector": {}}]}]
    async with running(world) as shell, serving(shell, bus) as url:
        await tell(bus, *facts(now), switch("n1"), switch("n2", 2), SYNC)
        await until(lambda: shell.not_ready() is None, "ready")

        async def rows(*options: str) -> tuple[str, int, int]:
            words = ("--no-connections", "-o", "json", *options)
            code, out, _ = await cli(url, tmp_path, opening, options=words)
            found = json.loads(out)["reachability"]
            assert code == 3
            return found["by"], len(found["items"]), found["more"]

        by, shown, more = await rows()
        assert (by, more) == ("namespace", 0)
        by, shown, more = await rows("--by", "workload", "--limit", "50")
        assert (by, shown, more > len(crowd) - 50) == ("workload", 50, True)
        everything = ("--by", "workload", "--limit", "10000")
        assert await rows(*everything) == ("workload", shown + more, 0)


async def test_refusals(world: World, bus: Bus, tmp_path: Any) -> None:
    """Each object by name and field, exit 1; and nothing without the token."""
    async with running(world) as shell, serving(shell, bus) as url:
        await tell(bus, *facts(shop("b")), SYNC)
        await until(lambda: shell.not_ready() is None, "ready")
        bad = manifest(shop("b"))
        bad["spec"] = {"podSelector": {}, "ingress": [{"ports": [{"port": 99999}]}]}
        other = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
        code, _, error = await cli(url, tmp_path, bad, other)
        said = " ".join(error.split())
        assert code == 1
        assert "NetworkPolicy x/p: spec.ingress[0].ports[0].port" in said
        assert "apps/v1 Deployment cannot be planned" in said
        code, _, error = await cli(url, tmp_path, manifest(shop("b")), secret="wrong")
        assert code == 1
        assert "401" in error
