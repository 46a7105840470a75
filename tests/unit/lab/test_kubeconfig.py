"""Kubeconfigs as people have them: tokens, token files, certificates, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dunlin_lab.apiserver.certificates import certificates_in
from dunlin_lab.foreign import leave
from dunlin_lab.kubeconfig import KubeconfigError, access, flatten


def written(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    """A kubeconfig with two contexts; the current one is ours."""
    config = {
        "current-context": "mine",
        "contexts": [
            {"name": "other", "context": {"cluster": "x", "user": "x"}},
            {"name": "mine", "context": {"cluster": "c", "user": "u", "namespace": "n"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(config))
    return path


def header(path: Path) -> str:
    """What a request with this kubeconfig says of who it is."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization", ""))
        return httpx.Response(200)

    found = access(path)
    transport = httpx.MockTransport(answer)
    with httpx.Client(base_url=found.server, auth=found.auth, transport=transport) as client:
        client.get("/")
    return seen[0]


def test_token(tmp_path: Path) -> None:
    """A token is sent as a bearer."""
    assert header(written(tmp_path, {"token": "t"})) == "Bearer t"


def test_token_file_is_read_again(tmp_path: Path) -> None:
    """A file beside the kubeconfig, by a relative path; what is in it now is sent."""
    path = written(tmp_path, {"tokenFile": "secret", "token": "old"})
    (tmp_path / "secret").write_text("one\n")
    assert header(path) == "Bearer one"
    (tmp_path / "secret").write_text("two\n")
    assert header(path) == "Bearer two"


def test_token_file_that_is_gone(tmp_path: Path) -> None:
    """An error of the request, naming the file."""
    with pytest.raises(httpx.RequestError, match=r"tokenFile .*secret"):
        header(written(tmp_path, {"tokenFile": "secret"}))


def test_client_certificate_by_relative_paths(tmp_path: Path) -> None:
    """Certificates beside the kubeconfig are found, also from the flattened copy elsewhere."""
    pair = certificates_in(tmp_path, "127.0.0.1")
    user = {"client-certificate": pair.certificate.name, "client-key": pair.key.name}
    path = written(tmp_path, user, **{"certificate-authority": pair.authority.name})
    assert access(path).auth is None
    elsewhere = tmp_path / "deep" / "er"
    elsewhere.mkdir(parents=True)
    copy = elsewhere / "config"
    copy.write_text(flatten(path))
    assert access(copy).server == "https://127.0.0.1:6443"
    # Without that a relative path would be looked for beside the copy.
    copy.write_text(path.read_text())
    with pytest.raises(KubeconfigError, match="certificates"):
        access(copy)


def test_flattened_is_the_current_context_alone(tmp_path: Path) -> None:
    """Other users' secrets are not copied; the namespace is kept."""
    config = yaml.safe_load(flatten(written(tmp_path, {"token": "t"})))
    assert [len(config[key]) for key in ("clusters", "users", "contexts")] == [1, 1, 1]
    assert config["contexts"][0]["context"]["namespace"] == "n"


@pytest.mark.parametrize("field", ["exec", "auth-provider", "username"])
def test_other_ways_in_are_refused(tmp_path: Path, field: str) -> None:
    """Naming user and field: a request without credentials would only say 401."""
    path = written(tmp_path, {field: {"command": "x"}})
    with pytest.raises(KubeconfigError, match=f"user 'u': {field}: not supported"):
        access(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a mapping"),
        ("{", "flow"),
        ("current-context: a", "contexts: no 'a'"),
        ("{current-context: a, contexts: [{name: a, context: {cluster: c}}]}", "clusters: no 'c'"),
        ("{current-context: a, contexts: [{name: a, context: 7}]}", "contexts: no 'a'"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, what: str) -> None:
    """File and field."""
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(KubeconfigError, match=what):
        access(path)


def test_no_server(tmp_path: Path) -> None:
    """A cluster without `server`."""
    with pytest.raises(KubeconfigError, match="no server"):
        access(written(tmp_path, {"token": "t"}, server=""))


def test_a_cluster_that_is_away_keeps_no_lab_up(tmp_path: Path) -> None:
    """`down` is told what may have stayed there, with the label to look for."""
    left = leave(written(tmp_path, {"token": "t"}, server="http://127.0.0.1:9"), "mylab")
    assert "dunlin.dev/lab=mylab" in left
    assert str(tmp_path) in left
