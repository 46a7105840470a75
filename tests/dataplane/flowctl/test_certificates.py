"""OpenFlow over TLS from end to end: the agent gives OVS its certificate, and both sides rotate."""

import asyncio
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from dunlin_agent.adapters.controllers import Controllers, split_target
from dunlin_agent.adapters.ovs_spec import BridgeSpec, ControllerSpec, SslSpec
from dunlin_agent.adapters.ovsdb import Ovs as AgentOvs
from tests.dataplane.flowctl.ovs import Ovs
from tests.dataplane.flowctl.test_transports import authority, refused
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import switch_intent

pytestmark = [pytest.mark.ovs]


def spec_in(directory: Path) -> SslSpec:
    """The switch's files there."""
    return SslSpec(
        private_key=str(directory / "switch.key"),
        certificate=str(directory / "switch.pem"),
        ca_cert=str(directory / "ca.pem"),
    )


def bridge(port: int) -> BridgeSpec:
    """Br-n1 of the dummy datapath, with flowctl by TLS as its controller."""
    return BridgeSpec(
        name="br-n1",
        datapath_type="dummy",
        protocols=("OpenFlow15",),
        other_config={"datapath-id": f"{0x11:016x}"},
        controllers=(ControllerSpec(target=f"ssl:127.0.0.1:{port}"),),
    )


def client_context(directory: Path) -> ssl.SSLContext:
    """Of somebody who holds the switch's key of that directory."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.check_hostname = False
    context.load_cert_chain(directory / "switch.pem", directory / "switch.key")
    return context


async def test_both_sides_take_new_certificates_without_a_restart(
    ovs: Ovs, cluster: Cluster, tmp_path: Path
) -> None:
    """A new authority on disk: sessions go on under it, and certificates of the old one end."""
    old, new, live = (tmp_path / name for name in ("old", "new", "live"))
    for directory in (old, new):
        directory.mkdir()
        await asyncio.to_thread(authority, directory, "flowctl", "switch")
    shutil.copytree(old, live)
    await cluster.intend(switch_intent("n1"))
    flowctl = await Flowctl(
        cluster,
        openflow_listen=("ssl:127.0.0.1:0",),
        openflow_cert=str(live / "flowctl.pem"),
        openflow_key=str(live / "flowctl.key"),
        openflow_ca=str(live / "ca.pem"),
    ).start()
    agent = AgentOvs(f"unix:{ovs.dir}/db.sock")
    await agent.start()
    try:
        await agent.ensure((bridge(flowctl.port),), ssl=spec_in(live))
        await flowctl.synced("n1")
        first = flowctl.handles.sessions[0x11]
        await asyncio.to_thread(shutil.copytree, new, live, dirs_exist_ok=True)
        assert await refused(flowctl.port, client_context(old))
        first.close("done")
        await until(
            lambda: flowctl.handles.sessions.get(0x11) not in {None, first}, "a new session"
        )
        await flowctl.synced("n1")
        # What is set already is not written again.
        await agent.ensure((bridge(flowctl.port),), ssl=spec_in(live))
    finally:
        await agent.close()
        await flowctl.stop()


async def test_a_half_written_certificate_changes_nothing(
    ovs: Ovs, cluster: Cluster, tmp_path: Path
) -> None:
    """While new files cannot be used, the old ones are: a rotation that goes wrong is no outage."""
    await asyncio.to_thread(authority, tmp_path, "flowctl", "switch")
    await cluster.intend(switch_intent("n1"))
    flowctl = await Flowctl(
        cluster,
        openflow_listen=("ssl:127.0.0.1:0",),
        openflow_cert=str(tmp_path / "flowctl.pem"),
        openflow_key=str(tmp_path / "flowctl.key"),
        openflow_ca=str(tmp_path / "ca.pem"),
    ).start()
    (tmp_path / "flowctl.pem").write_text("-----BEGIN CERTIF", encoding="ascii")
    agent = AgentOvs(f"unix:{ovs.dir}/db.sock")
    await agent.start()
    try:
        await agent.ensure((bridge(flowctl.port),), ssl=spec_in(tmp_path))
        await flowctl.synced("n1")
    finally:
        await agent.close()
        await flowctl.stop()


async def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are resolved, addresses stay as they are, and a silent resolver forgets nothing."""
    answers = {"flowctl": ["10.0.0.2", "10.0.0.1", "fd00::1"]}

    async def look(host: str, port: int, **_options: object) -> list[object]:
        if host not in answers:
            raise socket.gaierror("no such name")
        return [(0, 0, 0, "", (address, port)) for address in answers[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look)
    controllers = Controllers(("ssl:flowctl:6653", "tcp:10.9.9.9:6653"))
    expected = ("ssl:10.0.0.1:6653", "ssl:10.0.0.2:6653", "ssl:[fd00::1]:6653", "tcp:10.9.9.9:6653")
    assert await controllers.resolve() == expected
    answers.clear()
    assert await controllers.resolve() == expected
    assert await Controllers(("tcp:nowhere:1",)).resolve() == ()


@pytest.mark.parametrize("target", ["tcp:10.0.0.1:6653", "ssl:[fd00::1]:6653", "unix:/run/x", "x"])
def test_what_is_no_name_is_left_to_ovs(target: str) -> None:
    """Addresses, sockets and nonsense go to OVS as they are: it says what is wrong with them."""
    assert split_target(target) is None
