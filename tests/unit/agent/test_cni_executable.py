"""The CNI executable by itself: what it answers without an agent and lets through to one."""

import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dunlin_agent.cni import wire
from tests.unit.agent.executable import ADD_ENVIRONMENT, Responder, build, call

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONF = b'{"cniVersion":"1.1.0","name":"dunlin","type":"dunlin-cni"}'


@pytest.fixture
def short_path() -> Any:
    """A folder whose path leaves room in sun_path."""
    with tempfile.TemporaryDirectory(prefix="cni") as name:
        yield Path(name)


def test_version_needs_no_agent() -> None:
    """VERSION lists every version that we speak, also with nothing on standard input."""
    for stdin in (b"", b'{"cniVersion":"1.1.0"}'):
        got = call(build("dunlin-cni"), "VERSION", stdin)
        assert got.status == 0
        assert got.body == {
            "cniVersion": "1.1.0",
            "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        }


@pytest.mark.parametrize(
    ("command", "stdin", "environment", "code"),
    [
        pytest.param(None, CONF, ADD_ENVIRONMENT, 4, id="no command"),
        pytest.param("MOVE", CONF, ADD_ENVIRONMENT, 4, id="unknown command"),
        pytest.param("ADD", CONF, {}, 4, id="ADD without environment"),
        pytest.param("ADD", CONF, ADD_ENVIRONMENT | {"CNI_NETNS": ""}, 4, id="ADD without netns"),
        pytest.param("DEL", CONF, {"CNI_IFNAME": "eth0"}, 4, id="DEL without container"),
        pytest.param("STATUS", CONF, {"DUNLIN_CNI_TIMEOUT_SECONDS": "x"}, 4, id="timeout"),
        pytest.param("ADD", b"", ADD_ENVIRONMENT, 6, id="nothing"),
        pytest.param("ADD", b"{", ADD_ENVIRONMENT, 6, id="cut short"),
        pytest.param("ADD", CONF + b"{}", ADD_ENVIRONMENT, 6, id="two objects"),
        pytest.param("ADD", b'{"cniVersion":"1.1.0\xff"}', ADD_ENVIRONMENT, 6, id="not UTF-8"),
        pytest.param("ADD", b"{}" + b" " * 1024 * 1024, ADD_ENVIRONMENT, 6, id="over 1 MiB"),
        pytest.param("ADD", b'{"a":' * 70 + b"1" + b"}" * 70, ADD_ENVIRONMENT, 6, id="deep"),
        pytest.param("ADD", b"{}", ADD_ENVIRONMENT, 7, id="no version"),
        pytest.param("ADD", b'{"cniVersion":7}', ADD_ENVIRONMENT, 7, id="version no string"),
        pytest.param(
            "ADD",
            b'{"cniVersion":"1.1.0","agentSocket":"x"}',
            ADD_ENVIRONMENT,
            7,
            id="relative socket",
        ),
        pytest.param("ADD", b'{"cniVersion":"2.0.0"}', ADD_ENVIRONMENT, 1, id="version 2"),
        pytest.param(
            "ADD",
            b'{"cniVersion":"1.1.0","agentSocket":"/nowhere/agent.sock"}',
            ADD_ENVIRONMENT,
            11,
            id="no agent",
        ),
    ],
)
def test_errors_have_the_codes_of_the_specification(
    command: str | None, stdin: bytes, environment: dict[str, str], code: int
) -> None:
    """Each way to fail before an agent answers ends with its own code in an error object."""
    got = call(build("dunlin-cni"), command, stdin, **environment)
    assert got.status == 1
    assert got.body["code"] == code, got.body
    assert got.body["msg"]
    assert got.body["cniVersion"] in {"1.1.0", "1.0.0"}


def test_request_reaches_the_agent_whole(short_path: Path) -> None:
    """What the agent decodes is what the runtime gave, configuration byte for byte."""
    stdin = b' {"cniVersion":"0.4.0", "name":"n", "type":"t", "x":[1,{"y":"\\u00e9"}]}\n'
    with Responder(short_path / "s", wire.encode_reply(0, b'{"ok":"\xc3\xa9\\n"}\n')) as agent:
        socket = {"DUNLIN_AGENT_SOCKET": str(agent.path)}
        got = call(build("dunlin-cni"), "ADD", stdin, **ADD_ENVIRONMENT, **socket)
    assert (got.status, got.stdout) == (0, b'{"ok":"\xc3\xa9\\n"}\n')
    assert stdin in agent.requests[0]
    request = wire.decode_request(agent.requests[0])
    assert request.command == "ADD"
    assert request.pod == ("shop", "web-1")
    assert request.netns == Path("/run/netns/pod")
    assert request.conf.cni_version == "0.4.0"


def test_socket_of_the_configuration_wins(short_path: Path) -> None:
    """The configuration's agentSocket is used before the environment's."""
    with Responder(short_path / "s", wire.encode_reply(1, b"refused")) as agent:
        stdin = json.dumps(
            {"cniVersion": "1.1.0", "name": "n", "type": "t", "agentSocket": str(agent.path)}
        ).encode()
        got = call(build("dunlin-cni"), "STATUS", stdin, DUNLIN_AGENT_SOCKET="/nowhere")
    assert (got.status, got.stdout) == (1, b"refused")
    assert len(agent.requests) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(b"", 11, id="closed without an answer"),
        pytest.param(struct.pack("!I", 9) + b"{", 11, id="cut short"),
        pytest.param(struct.pack("!I", 0xFFFFFFFF), 5, id="absurd length"),
        pytest.param(wire.frame(b'{"exit":7,"stdout":""}'), 5, id="exit 7"),
        pytest.param(wire.frame(b'{"exit":0,"stdout":["x"]}'), 5, id="stdout no string"),
        pytest.param(wire.frame(b'{"exit":0,"stdout":"\\ud800"}'), 5, id="lone surrogate"),
        pytest.param(wire.frame(b"nonsense"), 5, id="no JSON"),
    ],
)
def test_bad_answers_become_errors(short_path: Path, answer: bytes, code: int) -> None:
    """An agent that breaks off or talks nonsense gives an error object, never its bytes."""
    with Responder(short_path / "s", answer) as agent:
        got = call(build("dunlin-cni-asan"), "STATUS", CONF, DUNLIN_AGENT_SOCKET=str(agent.path))
    assert (got.status, got.body["code"]) == (1, code)


def test_deadline_ends_a_silent_caller(short_path: Path) -> None:
    """A standard input that never ends is given up at the deadline, with an error object."""
    with Responder(short_path / "s", b"") as agent:
        environment = {"DUNLIN_CNI_TIMEOUT_SECONDS": "1", "DUNLIN_AGENT_SOCKET": str(agent.path)}
        silent = short_path / "silent"
        os.mkfifo(silent)
        keep_open = os.open(silent, os.O_RDWR)
        try:
            with silent.open("rb", buffering=0) as stdin:
                done = subprocess.run(
                    [build("dunlin-cni")],
                    stdin=stdin,
                    env=environment | {"CNI_COMMAND": "STATUS"},
                    capture_output=True,
                    timeout=20,
                    check=False,
                )
        finally:
            os.close(keep_open)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 5


def answers_sensibly(command: str, stdin: bytes, environment: dict[str, str]) -> None:
    """No crash, no report of the sanitizer, and one JSON object on standard output."""
    got = call(build("dunlin-cni-asan"), command, stdin, **environment)
    assert got.stderr == b""
    assert got.status in (0, 1)
    assert isinstance(got.body, dict)
    if got.status == 1:
        assert got.body["code"] in {1, 4, 5, 6, 7, 11}


@FEW
@given(stdin=st.binary(max_size=300))
@example(stdin=b"{" * 100)
@example(stdin=b'{"cniVersion":"' + b"\\" * 3 + b'"}')
@example(stdin=b'{"cniVersion":"\\ud83d\\ude00"}')
@example(stdin=b'{"\\u0063niVersion":"\\u0000"}')
def test_garbage_on_standard_input(stdin: bytes) -> None:
    """Arbitrary bytes give an error object and no bad memory access."""
    answers_sensibly("STATUS", stdin, {"DUNLIN_AGENT_SOCKET": "/nowhere"})


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(["cniVersion", "agentSocket", "name", "x"])


@FEW
@given(document=st.dictionaries(KEYS, JSON_VALUES), ascii_only=st.booleans())
def test_any_json_object_is_read_as_python_reads_it(
    document: dict[str, Any], *, ascii_only: bool
) -> None:
    """A valid object is never called undecodable, and its cniVersion is judged by its value."""
    stdin = json.dumps(document, ensure_ascii=ascii_only).encode(errors="replace")
    got = call(build("dunlin-cni-asan"), "STATUS", stdin, DUNLIN_AGENT_SOCKET="/nowhere")
    assert got.stderr == b""
    version = document.get("cniVersion")
    if not isinstance(version, str) or version == "" or len(version.encode()) > 31:
        assert got.body["code"] == 7
    elif version not in {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}:
        assert got.body["code"] in {1, 7}  # 7: a NUL in it
    else:
        assert got.body["code"] in {7, 11}


@FEW
@given(
    value=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=40)
)
def test_environment_arrives_as_it_is(value: str) -> None:
    """Whatever stands in CNI_ARGS, the agent's JSON decoder reads the same text."""
    with tempfile.TemporaryDirectory(prefix="cni") as folder:
        with Responder(Path(folder) / "s", wire.encode_reply(0, b"")) as agent:
            environment = ADD_ENVIRONMENT | {
                "CNI_ARGS": value,
                "DUNLIN_AGENT_SOCKET": str(agent.path),
            }
            got = call(build("dunlin-cni-asan"), "ADD", CONF, **environment)
        assert (got.status, got.stderr) == (0, b"")
        assert json.loads(agent.requests[0])["args"] == value
