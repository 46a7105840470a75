"""How sessions come about: TLS, unix sockets, and switches that flowctl connects to."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from dunlin.service.settings import SettingsError
from dunlin_flowctl.adapters.listener import parse_address
from tests.dataplane.flowctl.ovs import Ovs
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import switch_intent

pytestmark = [pytest.mark.ovs]


def openssl(directory: Path, *args: str) -> None:
    """Run openssl there."""
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)


def authority(directory: Path, *names: str) -> None:
    """ca.pem, and for each name a key and a certificate that it signed."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl(directory, *ca, "-addext", "keyUsage=critical,keyCertSign")
    (directory / "extensions").write_text("authorityKeyIdentifier=keyid\n", encoding="ascii")
    for name in names:
        request = ("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(directory, *request, "-subj", f"/CN={name}")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions")
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")


async def refused(port: int, context: ssl.SSLContext | None) -> bool:
    """Somebody without a certificate gets not one byte of OpenFlow."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"\x06\x00\x00\x08\x00\x00\x00\x01")
        async with asyncio.timeout(10):
            return await reader.read() == b""
    except OSError:
        return True


async def test_tls_both_ways(ovs: Ovs, cluster: Cluster, tmp_path: Path) -> None:
    """A switch with a certificate of our authority is served, one without is not."""
    authority(tmp_path, "flowctl", "switch")
    await cluster.intend(switch_intent("n1"))
    flowctl = await Flowctl(
        cluster,
        openflow_listen=("ssl:127.0.0.1:0",),
        openflow_cert=str(tmp_path / "flowctl.pem"),
        openflow_key=str(tmp_path / "flowctl.key"),
        openflow_ca=str(tmp_path / "ca.pem"),
    ).start()
    files = [str(tmp_path / name) for name in ("switch.key", "switch.pem", "ca.pem")]
    await asyncio.to_thread(ovs.vsctl, "set-ssl", *files)
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, f"ssl:127.0.0.1:{flowctl.port}")
    await flowctl.synced("n1")
    nobody = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    nobody.check_hostname = False
    for context in (None, nobody):
        assert await refused(flowctl.port, context)
    await flowctl.stop()


async def test_flowctl_connects_to_the_switch(ovs: Ovs, cluster: Cluster) -> None:
    """By the bridge's unix socket, and again after the session was lost."""
    await cluster.intend(switch_intent("n1"))
    flowctl = await Flowctl(cluster).start()
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11)
    address = f"unix:{ovs.dir}/br-n1.mgmt"
    connecting = asyncio.create_task(flowctl.shell.listener.connect(address))
    await flowctl.synced("n1")
    first = flowctl.handles.sessions[0x11]
    first.close("done")
    await until(lambda: flowctl.handles.sessions.get(0x11) not in {None, first}, "another session")
    await flowctl.synced("n1")
    connecting.cancel()
    await asyncio.wait({connecting})
    await flowctl.stop()


async def test_switches_may_connect_to_a_unix_socket(ovs: Ovs, cluster: Cluster) -> None:
    """Flowctl listens on a unix socket as well."""
    await cluster.intend(switch_intent("n1"))
    # OVS takes unix controllers only from below its run directory.
    path = ovs.dir / "flowctl.sock"
    flowctl = await Flowctl(cluster, openflow_listen=(f"unix:{path}",)).start()
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, f"unix:{path}")
    await flowctl.synced("n1")
    await flowctl.stop()


@pytest.mark.parametrize(
    "text", ["", "tcp:", "tcp:host", "tcp::1", "tcp:h:99999", "udp:h:1", "unix:"]
)
def test_bad_addresses_are_named(text: str) -> None:
    """An address that cannot be used is an error that names it."""
    with pytest.raises(SettingsError, match="expected tcp:HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("text", ["tcp:[::1]:6653", "ssl:10.0.0.1:0", "unix:/run/x.sock"])
def test_addresses_read_back(text: str) -> None:
    """An address is shown as it was written."""
    assert str(parse_address(text)) == text
