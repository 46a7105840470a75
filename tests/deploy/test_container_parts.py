"""What runs in containers beside the services: health probe, CNI installer, kubelet of one node."""

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from dunlin.service import probe
from dunlin_lab.solo import SoloError, node_of, place_from
from tools.same_image import Entry, differences

ROOT = Path(__file__).resolve().parents[2]


class Health(http.server.BaseHTTPRequestHandler):
    """/healthz is well, everything else is not."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b"still starting")

    def log_message(self, *_args: object) -> None:
        """No noise."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a service."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_probe_says_why(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 for 200; else 1 with the service's own words, also when nobody listens."""
    monkeypatch.setenv("DUNLIN_API_HOST", "0.0.0.0")
    monkeypatch.setenv("DUNLIN_API_PORT", str(port))
    assert probe.main(["probe"]) == 0
    assert probe.main(["probe", "/readyz"]) == 1
    assert "503 still starting" in capsys.readouterr().err
    monkeypatch.setenv("DUNLIN_API_PORT", "1")
    assert probe.main(["probe"]) == 1
    assert "refused" in capsys.readouterr().err


def test_the_installer_replaces_and_writes_json(tmp_path: Path) -> None:
    """The executable and then the configuration, each whole, also over older ones."""
    script = (ROOT / "images/install-cni").read_text(encoding="utf-8")
    program = tmp_path / "dunlin-cni"
    program.write_text("#!/bin/sh\n", encoding="ascii")
    script = script.replace("/opt/cni/dunlin-cni", str(program))
    environment = {
        **os.environ,
        "CNI_BIN_DIR": str(tmp_path / "bin"),
        "CNI_CONF_DIR": str(tmp_path / "conf"),
        "DUNLIN_AGENT_SOCKET": "/run/x.sock",
    }
    for _ in range(2):
        subprocess.run(["sh", "-c", script], env=environment, check=True, capture_output=True)
    conf = json.loads((tmp_path / "conf/10-dunlin.conflist").read_text(encoding="utf-8"))
    assert conf["plugins"] == [{"type": "dunlin-cni", "agentSocket": "/run/x.sock"}]
    assert os.access(tmp_path / "bin/dunlin-cni", os.X_OK)
    names = [path.name for path in [*tmp_path.glob("bin/*"), *tmp_path.glob("conf/*")]]
    assert sorted(names) == ["10-dunlin.conflist", "dunlin-cni"]


PLACE = {
    "DUNLIN_NODE": "node-1",
    "DUNLIN_NODE_IPS": "172.30.99.21,fd00::21",
    "KUBECONFIG": "/shared/kubeconfig",
    "DUNLIN_AGENT_SOCKET": "/run/dunlin/agent.sock",
    "DUNLIN_CNI": "/opt/dunlin/bin/dunlin-cni",
}


def test_a_kubelet_of_one_node_knows_its_place() -> None:
    """All of it from the environment."""
    node = node_of(place_from(PLACE))
    assert (node.name, [ip_address(ip).version for ip in node.ips]) == ("node-1", [4, 6])
    assert node.plugin.conf["agentSocket"] == "/run/dunlin/agent.sock"


@pytest.mark.parametrize("name", sorted(PLACE))
def test_a_missing_variable_is_named(name: str) -> None:
    """The error says which."""
    with pytest.raises(SoloError, match=name):
        place_from({**PLACE, name: ""})


def test_a_bad_address_is_named() -> None:
    """The error says which variable and why."""
    with pytest.raises(SoloError, match="DUNLIN_NODE_IPS='nonsense'"):
        place_from({**PLACE, "DUNLIN_NODE_IPS": "nonsense"})


def test_images_are_compared_by_what_is_in_them() -> None:
    """A path of one alone, another content, another mode or owner: each is named."""
    same: dict[str, Entry] = {"a": (b"0", 0o644, 0, 0, "", "x"), "b": (b"0", 0o644, 0, 0, "", "x")}
    assert differences(same, dict(same)) == []
    other: dict[str, Entry] = {"b": (b"0", 0o755, 0, 0, "", "x"), "c": (b"0", 0o644, 0, 0, "", "x")}
    assert differences(same, other) == [
        "only in the first: a",
        "only in the second: c",
        "differs: b",
    ]
