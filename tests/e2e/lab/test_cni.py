"""The runtime's side of CNI, against plugins that answer well and badly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dunlin_lab.cni import Attachment, CniError, Plugin

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

POD = Attachment("c" * 64, Path("/run/netns/none"), "default", "web", "u1")


def plugin(tmp_path: Path, script: str) -> Plugin:
    """A plugin that is a shell script, run in this very namespace."""
    path = tmp_path / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Plugin(path, Path("/proc/self/ns/net"), {"cniVersion": "1.1.0", "name": "t"})


async def test_add_gives_addresses_ipv4_first(tmp_path: Path) -> None:
    """Whatever order the plugin gives them in."""
    result = {"ips": [{"address": "fd00::5/64"}, {"address": "10.0.0.5/24"}]}
    assert await plugin(tmp_path, f"echo '{json.dumps(result)}'").add(POD) == (
        "10.0.0.5",
        "fd00::5",
    )


async def test_the_environment_is_a_runtimes(tmp_path: Path) -> None:
    """CNI_* and the K8S_ arguments that containerd gives."""
    await plugin(tmp_path, f"env > {tmp_path}/env").delete(POD)
    env = (tmp_path / "env").read_text().splitlines()
    for line in (
        "CNI_COMMAND=DEL",
        f"CNI_CONTAINERID={'c' * 64}",
        "CNI_NETNS=/run/netns/none",
        "CNI_IFNAME=eth0",
        f"CNI_PATH={tmp_path}",
    ):
        assert line in env
    (arguments,) = [line for line in env if line.startswith("CNI_ARGS=")]
    assert "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;" in arguments


async def test_gc_names_what_is_valid(tmp_path: Path) -> None:
    """As container id and interface, beside the network configuration."""
    await plugin(tmp_path, f"cat > {tmp_path}/conf").collect([("a", "eth0")])
    conf = json.loads((tmp_path / "conf").read_text())
    assert conf["name"] == "t"
    assert conf["cni.dev/valid-attachments"] == [{"containerID": "a", "ifname": "eth0"}]


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("""echo '{"code":11,"msg":"try again","details":"busy"}'; exit 1""", 11, "busy"),
        ("echo garbage; exit 1", 0, "not JSON"),
        ("echo oops >&2; exit 3", 0, "exit code 3: oops"),
        ("echo '{}'", 0, "result {}"),
        ("""echo '{"ips":[]}'""", 0, "no ips"),
        ("""echo '{"ips":[{"address":"10.0.0.300/24"}]}'""", 0, "10.0.0.300"),
        ("echo '[]'", 0, "exit code 0"),
    ],
)
async def test_a_bad_answer_is_an_error_that_says_so(
    tmp_path: Path, script: str, code: int, message: str
) -> None:
    """The specification's code where there is one, and the plugin's own words."""
    with pytest.raises(CniError, match=message) as caught:
        await plugin(tmp_path, script).add(POD)
    assert caught.value.code == code


async def test_a_plugin_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(CniError, match="absent"):
        await Plugin(tmp_path / "absent", Path("/proc/self/ns/net")).status()
