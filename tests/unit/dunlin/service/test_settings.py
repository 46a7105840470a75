"""Settings from flags, environment and defaults."""

from dataclasses import FrozenInstanceError, dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Literal

import pytest

from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin.service.settings import (
    CommonSettings,
    SettingsError,
    describe,
    help_text,
    load,
    load_or_exit,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Example(CommonSettings):
    """One field of each kind."""

    pools: tuple[IPNetwork, ...] = setting((), "Pools.")
    gateway: IPAddress | None = setting(None, "Gateway.")
    cool_down_s: float = setting(30.0, "Cool-down.", unit="seconds", low=0)
    shards: int = setting(16, "Shards.", low=1, high=256)
    dry_run: bool = setting(False, "Change nothing.")
    state_dir: Path = setting(Path("/var/lib/dunlin"), "State.")
    mode: Literal["auto", "tunnel"] = setting("auto", "Mode.")


def test_defaults() -> None:
    """Nothing given: the defaults; the replica's name is made."""
    settings = load(Example, environ={})
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.api_host == "127.0.0.1"
    assert settings.pools == ()
    assert "-" in settings.replica


def test_every_kind_from_the_environment() -> None:
    """Each type is parsed; an empty variable counts as not set."""
    settings = load(
        Example,
        environ={
            "NATS_URL": "nats://n:4222",
            "DUNLIN_POOLS": "10.0.0.0/8, fd00::/48",
            "DUNLIN_GATEWAY": "10.0.0.1",
            "DUNLIN_COOL_DOWN_S": "1.5",
            "DUNLIN_SHARDS": "0x10",
            "DUNLIN_DRY_RUN": "Yes",
            "DUNLIN_STATE_DIR": "/tmp/x",
            "DUNLIN_MODE": "tunnel",
            "DUNLIN_LOG_LEVEL": "",
        },
    )
    assert settings.nats_url == "nats://n:4222"
    assert settings.pools == (IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/48"))
    assert settings.gateway == ip_address("10.0.0.1")
    assert (settings.cool_down_s, settings.shards, settings.dry_run) == (1.5, 16, True)
    assert (settings.state_dir, settings.mode) == (Path("/tmp/x"), "tunnel")
    assert settings.log_level == "info"


def test_flags_win() -> None:
    """A flag is stronger than the environment; `=` or a space; a boolean alone is true."""
    argv = ["--shards", "3", "--mode=tunnel", "--dry-run", "--api-port", "80"]
    settings = load(Example, argv, {"DUNLIN_SHARDS": "9"})
    assert (settings.shards, settings.mode, settings.dry_run, settings.api_port) == (
        3,
        "tunnel",
        True,
        80,
    )


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        ([], {"DUNLIN_SHARDS": "many"}, ["DUNLIN_SHARDS", "'many'", "whole number"]),
        ([], {"DUNLIN_SHARDS": "0"}, ["DUNLIN_SHARDS", "at least 1"]),
        ([], {"DUNLIN_COOL_DOWN_S": "nan"}, ["DUNLIN_COOL_DOWN_S", "nan"]),
        ([], {"DUNLIN_POOLS": "10.0.0.1/8"}, ["DUNLIN_POOLS", "10.0.0.1/8", "host bits"]),
        ([], {"DUNLIN_DRY_RUN": "perhaps"}, ["DUNLIN_DRY_RUN", "perhaps"]),
        (["--mode", "vpn"], {}, ["--mode", "vpn", "auto", "tunnel"]),
        (["--colour", "red"], {}, ["--colour", "no such option"]),
        (["--shards"], {}, ["--shards", "needs a value"]),
    ],
)
def test_errors_name_source_and_value(
    argv: list[str], environ: dict[str, str], words: list[str]
) -> None:
    """An error says which variable or flag, what it held and what was expected."""
    with pytest.raises(SettingsError) as caught:
        load(Example, argv, environ)
    assert all(word in str(caught.value) for word in words)


def test_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints flag, variable, unit and meaning of every setting, and exits with 0."""
    with pytest.raises(SystemExit) as caught:
        load_or_exit(Example, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text == help_text(Example)
    for item in describe(Example):
        assert item.flag in text
        assert item.env in text
        assert item.doc in text
    assert "30.0 seconds" in text


def test_a_bad_setting_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    """A program with a setting that it cannot use says so and exits with 2."""
    with pytest.raises(SystemExit) as caught:
        load_or_exit(Example, ["--shards", "x"])
    assert caught.value.code == 2
    assert "--shards" in capsys.readouterr().err


def test_frozen() -> None:
    """Nobody changes settings."""
    settings = load(Example, environ={})
    with pytest.raises(FrozenInstanceError):
        settings.shards = 2  # type: ignore[misc]
