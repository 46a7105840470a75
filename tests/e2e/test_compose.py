"""compose/: the whole system in containers, on a real Docker engine."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "compose/compose.yaml"
NAMES = ("watcher", "ipam", "planner", "flowctl", "metrics", "agent", "cni", "ovs", "lab")
PROJECT = "dunlin-e2e"
PROMETHEUS = "http://127.0.0.1:9090"


def compose_command() -> list[str]:
    """Compose v2: the plugin, or its program on PATH."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and " 2." in done.stdout.replace("v2", " 2"):
            return command
    return []


def why_not() -> str:
    """Why there can be no containers here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root: Pods are network namespaces of this machine"
    if not compose_command():
        return "no Compose v2 (Debian trixie: docker-compose)"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return "no Docker engine answers (tools/with-docker starts one)"
    for name in NAMES:
        image = f"dunlin/{name}:dev"
        command = ["docker", "image", "inspect", image]
        found = subprocess.run(command, capture_output=True, check=False)
        if found.returncode != 0:
            return f"no image {image} (tools/base-images && tools/images)"
    return "" if shutil.which("kubectl") else "no kubectl"


class Compose:
    """One project, with the profiles that say where its Kubernetes API is."""

    def __init__(self, directory: Path, profiles: str) -> None:
        self.kubeconfig = directory / "kubeconfig"
        self.environment = {**os.environ, "COMPOSE_PROFILES": profiles}

    def __call__(self, *args: str, timeout_s: float = 240) -> str:
        command = [*compose_command(), "-p", PROJECT, "-f", str(COMPOSE_FILE), *args]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=self.environment,
        )
        assert done.returncode == 0, f"{args}: {done.stderr[-3000:]}"
        return done.stdout

    def kubectl(self, *args: str, stdin: str = "") -> str:
        command = ["kubectl", "--kubeconfig", str(self.kubeconfig), *args]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{args}: {done.stderr}"
        return done.stdout

    def get(self, *args: str) -> Any:
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def call(self, pod: dict[str, Any], url: str) -> dict[str, Any]:
        """One HTTP GET from inside a Pod, which must answer within 3 s."""
        kubelet = "kubelet-" + pod["spec"]["nodeName"][-1]
        address = pod["status"]["podIP"]
        script = (
            'for n in $(ls /run/netns); do ip -n "$n" -4 -o addr show eth0 2>/dev/null'
            f' | grep -q "{address}/" && exec ip netns exec "$n" python -c'
            " 'import urllib.request as u;"
            f' print(u.urlopen("{url}", timeout=3).read().decode())\'; done; exit 9'
        )
        answer: dict[str, Any] = json.loads(self("exec", "-T", kubelet, "sh", "-c", script))
        return answer


def until(ready: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait for a level; the last failure is the error's cause."""
    deadline = time.monotonic() + timeout_s
    problem: AssertionError | None = None
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except AssertionError as error:
            problem = error
        time.sleep(0.5)
    raise AssertionError(f"not in {timeout_s:.0f} s: {what}") from problem


def running(
    directory: Path, profiles: str, service: str = "apiserver", file: str = "/shared/kubeconfig"
) -> Iterator[Compose]:
    """The system, up and ready; down at the end, with its volumes, and nothing left of its Pods."""
    reason = why_not()
    if reason:
        pytest.skip(f"docker tier skipped: {reason}")
    found = Compose(directory, profiles)
    try:
        found("up", "--detach", "--no-build", "--wait", "--wait-timeout", "180")
        found.kubeconfig.write_text(found("exec", "-T", service, "cat", file))
        yield found
    finally:
        # `down` takes only what the profiles name, whatever a test has set.
        found.environment["COMPOSE_PROFILES"] = profiles
        # Shown where a test fails.
        print(found("ps", "--all"), found("logs", "--no-color", "--tail", "12"))
        found("down", "--volumes", "--timeout", "25")
    left = [path.name for path in Path("/run/netns").glob("dl-c-node-*")]
    assert not left, f"namespaces of Pods outlived `docker compose down`: {left}"


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """With the lab's API server, and Prometheus."""
    yield from running(tmp_path_factory.mktemp("compose"), "embedded,observe")


SHOP = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: backend}
spec:
  replicas: 2
  selector: {matchLabels: {app: backend}}
  template:
    metadata: {labels: {app: backend}}
    spec:
      containers: [{name: api, image: lab/responder, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: backend}
spec:
  selector: {app: backend}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers: [{name: api, image: lab/responder}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}]
      ports: [{port: 80}]
"""


def ready_pods(compose: Compose) -> list[dict[str, Any]]:
    """Pods of the default namespace whose condition Ready is True."""
    return [
        pod
        for pod in compose.get("pods")["items"]
        if any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in pod.get("status", {}).get("conditions", [])
        )
    ]


def answering(compose: Compose, calls: int = 12) -> set[str]:
    """Pods that answer when the client calls the Service; every call is answered."""
    client = compose.get("pod", "client")
    address = compose.get("service", "backend")["spec"]["clusterIP"]
    return {compose.call(client, f"http://{address}/")["pod"] for _ in range(calls)}


def test_pods_talk_through_a_service_while_services_scale_and_die(compose: Compose) -> None:
    """A Service spreads, and takes more replicas of Dunlin and the death of one of each."""
    compose.kubectl("apply", "-f", "-", stdin=SHOP)
    until(lambda: len(ready_pods(compose)) == 3, "three Pods are ready")
    until(lambda: len(answering(compose)) == 2, "both backends answer")
    compose(
        *("up", "--detach", "--no-build", "--wait", "--wait-timeout", "120", "--no-recreate"),
        *("--scale", "planner=3", "--scale", "flowctl=3"),
    )
    planners = [line for line in compose("ps", "-q", "planner").split() if line]
    flowctls = [line for line in compose("ps", "-q", "flowctl").split() if line]
    assert (len(planners), len(flowctls)) == (3, 3)
    assert answering(compose)
    subprocess.run(["docker", "kill", planners[0], flowctls[0]], check=True, capture_output=True)
    compose.kubectl("scale", "deployment/backend", "--replicas=4")
    until(lambda: len(ready_pods(compose)) == 5, "two more Pods are ready")
    until(lambda: len(answering(compose, 24)) == 4, "all four backends answer")


# Panels that are empty while all is well: nothing was refused.
EMPTY_WHEN_WELL = {"Input that could not be used"}


def panels() -> list[tuple[str, str]]:
    """Every query of every dashboard, as Grafana would send it."""
    found = []
    for path in sorted((ROOT / "k8s/base/observe/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            if panel["title"] not in EMPTY_WHEN_WELL:
                found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    return found


def series(query: str) -> list[Any]:
    """What Prometheus answers now."""
    form = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "30s")})
    url = f"{PROMETHEUS}/api/v1/query?{form}"
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - a fixed address
        found: list[Any] = json.load(answer)["data"]["result"]
    return found


def test_every_panel_shows_something(compose: Compose) -> None:
    """Each query of each dashboard has series in a real Prometheus that scrapes real services."""
    if not ready_pods(compose):
        compose.kubectl("apply", "-f", "-", stdin=SHOP)
        until(lambda: len(ready_pods(compose)) >= 3, "the Pods are ready")
    until(lambda: bool(answering(compose)), "the Service answers")
    missing = panels()
    assert len(missing) > 20

    client = compose.get("pod", "client")
    (backend, *_) = compose.get("pods", "-l", "app=backend")["items"]

    def all_shown() -> bool:
        answering(compose, 2)
        # What no rule of the policy allows is counted too.
        with pytest.raises(AssertionError):
            compose.call(client, f"http://{backend['status']['podIP']}:81/")
        missing[:] = [item for item in missing if not series(item[1])]
        return not missing

    try:
        until(all_shown, "every panel has series", timeout_s=90)
    finally:
        assert not missing, missing
    assert not series("dunlin_no_such_series"), "the oracle cannot fail"


# What clusterloader2 records for its measurement NetworkProgrammingLatency, by quantile.
RECORDED = (
    "histogram_quantile({quantile}, "
    "sum(rate(kubeproxy_network_programming_duration_seconds_bucket[5m])) by (le))"
)
# What it asks of each record, with the length of its test.
GATHERED = "quantile_over_time(0.99, {recorded}[{window}])"


def seconds(query: str) -> list[float]:
    """What Prometheus answers, without what is no number: of a rate of 0 there is no quantile."""
    values = [float(item["value"][1]) for item in series(query)]
    return [value for value in values if math.isfinite(value)]


def test_clusterloader2_reads_the_programming_latency(compose: Compose) -> None:
    """Its queries give seconds under kube-proxy's name; nobody has some under another."""
    if not ready_pods(compose):
        compose.kubectl("apply", "-f", "-", stdin=SHOP)
    sizes = itertools.cycle((3, 2))
    found: list[float] = []

    def measured() -> bool:
        compose.kubectl("scale", "deployment/backend", f"--replicas={next(sizes)}")
        recorded = [RECORDED.format(quantile=quantile) for quantile in ("0.50", "0.90", "0.99")]
        # A rule evaluates every 5 s what is a subquery here.
        asked = [GATHERED.format(recorded=query, window="2m:5s") for query in recorded]
        found[:] = [value for query in asked for value in seconds(query)]
        return len(found) == len(asked)

    until(measured, "three quantiles of the programming latency", timeout_s=90)
    compose.kubectl("scale", "deployment/backend", "--replicas=2")
    assert all(value > 0 for value in found), found
    assert not seconds(RECORDED.format(quantile="0.99").replace("kubeproxy", "nobody"))


def test_alerts_are_quiet_while_all_is_well(compose: Compose) -> None:
    """Prometheus holds the rules and evaluates them without an error; none fires for a while."""
    url = f"{PROMETHEUS}/api/v1/rules"
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - a fixed address
        (group,) = json.load(answer)["data"]["groups"]
    assert len(group["rules"]) > 5
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}


def test_the_code_of_a_checkout_runs_without_a_build(compose: Compose) -> None:
    """With dev.yaml a service imports the files of this checkout, not those of its image."""
    script = "import dunlin_planner.core.step as m; print(m.__file__, open(m.__file__).read())"
    files = ("-f", str(ROOT / "compose/dev.yaml"))
    run = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "python", "planner", "-c", script)
    found = compose(*files, *run)
    here = (ROOT / "services/planner/dunlin_planner/core/step.py").read_text(encoding="utf-8")
    assert found.split(" ", 1)[1].strip() == here.strip()
    mounts = compose(*files, "config", "planner")
    assert str(ROOT / "services/planner/dunlin_planner") in mounts


def copied(directory: Path) -> Path:
    """A checkout that a test may change: its folder."""
    for name in ("compose", "k8s", "dunlin", "services"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / name, ignore=ignore, symlinks=True)
    for name in ("images", "lab", "pyproject.toml", "uv.lock", ".dockerignore"):
        (directory / name).symlink_to(ROOT / name)
    directory.chmod(0o755)
    return directory


def test_a_change_of_code_restarts_its_service(compose: Compose, tmp_path: Path) -> None:
    """`docker compose watch` with dev.yaml: a saved file runs, without a build and by itself."""
    checkout = copied(tmp_path)
    file = checkout / "compose/compose.yaml"
    files = ["-f", str(file), "-f", str(file.with_name("dev.yaml"))]
    of_checkout = [*compose_command(), "-p", PROJECT, *files]
    environment = compose.environment
    up = ("up", "--detach", "--no-build", "--no-deps", "planner")

    def started() -> str:
        (planner, *_) = compose("ps", "--all", "-q", "planner").split()
        command = ["docker", "inspect", "--format", "{{.State.StartedAt}}", planner]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def runs_the_change() -> bool:
        script = "import dunlin_planner.core.step as m; print(m.CHANGED)"
        return "yes" in compose("exec", "-T", "planner", "python", "-c", script)

    subprocess.run([*of_checkout, *up], check=True, capture_output=True, env=environment)
    said = tmp_path / "watch.log"
    with said.open("wb") as log:
        command = [*of_checkout, "watch", "--no-up", "planner"]
        watch = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        until(lambda: "Watch enabled" in said.read_text(), "watch is ready")
        before = started()
        step = checkout / "services/planner/dunlin_planner/core/step.py"
        step.write_text(step.read_text(encoding="utf-8") + '\nCHANGED = "yes"\n', encoding="utf-8")
        until(lambda: started() != before, f"the planner is started again: {said}")
        until(runs_the_change, "it runs the changed code")
    finally:
        watch.terminate()
        watch.wait()
        print(said.read_text())
        compose(*up)


def test_images_hold_no_tools_and_run_as_nobody(compose: Compose) -> None:
    """Services are not root, have a read-only root file system, and no compiler or installer."""
    script = "id -u; touch /x 2>&1; command -v gcc uv pip apt-get 2>&1 | grep -v apt-get; true"
    for service in ("watcher", "ipam", "planner", "flowctl", "metrics"):
        lines = compose("exec", "-T", service, "sh", "-c", script).split("\n")
        assert lines[0] == "10001", service
        assert "Read-only file system" in lines[1], service
        assert not any(lines[2:]), service


DIGESTS = """
import hashlib, importlib.util, pathlib, sys
for name in sys.argv[1:]:
    root = pathlib.Path(importlib.util.find_spec(name).origin).parent
    files = sorted(root.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    print(name, len(files), digest.hexdigest())
"""


def test_images_hold_the_code_of_this_checkout() -> None:
    """Each of its files, in every image: nothing that a builder's cache has kept from before."""
    if reason := why_not():
        pytest.skip(f"docker tier skipped: {reason}")
    for name in (name for name in NAMES if name not in {"cni", "ovs"}):
        packages = ("dunlin", f"dunlin_{name}")
        run = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "python"]
        for_image = [*run, f"dunlin/{name}:dev", "-c", DIGESTS, *packages]
        found = subprocess.run(for_image, capture_output=True, text=True, check=True).stdout
        for_checkout = [sys.executable, "-c", DIGESTS, *packages]
        here = subprocess.run(for_checkout, capture_output=True, text=True, check=True).stdout
        assert found == here, name


@pytest.mark.parametrize("image", ["planner", "ovs"])
def test_an_image_lists_what_it_is_made_of(compose: Compose, image: str) -> None:
    """Debian's and Python's packages, each with its version and package URL."""
    command = [sys.executable, "-m", "tools.sbom", f"dunlin/{image}:dev"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    kinds = {"deb": 0, "pypi": 0}
    for item in json.loads(done.stdout)["components"]:
        if "purl" in item:
            assert item["version"] in item["purl"].replace("%2B", "+")
            kinds[item["purl"].split("/")[0].removeprefix("pkg:")] += 1
    assert kinds["deb"] > 50
    assert (kinds["pypi"] > 10) == (image == "planner")


@pytest.mark.parametrize(
    ("profiles", "files"),
    [
        ("embedded", ()),
        ("embedded,observe,grafana", ()),
        ("official", ()),
        ("", ()),
        ("embedded", ("dev.yaml",)),
    ],
)
def test_the_file_is_valid(profiles: str, files: tuple[str, ...]) -> None:
    """`docker compose config` takes it without a warning, whatever the Kubernetes API."""
    command = compose_command()
    if not command:
        pytest.skip("docker tier skipped: no Compose v2")
    for file in ("compose.yaml", *files):
        command += ["-f", str(ROOT / "compose" / file)]
    done = subprocess.run(
        [*command, "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COMPOSE_PROFILES": profiles},
    )
    assert (done.returncode, done.stderr) == (0, "")
