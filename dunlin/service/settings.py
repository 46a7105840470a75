"""
Settings: one frozen dataclass a service, read from flags, then the environment, then defaults.

Field `api_port` is the flag `--api-port` and the variable `DUNLIN_API_PORT` (or the one its field
names). Every field says its default, unit and meaning in one place: `setting(...)`.
"""

import dataclasses
import ipaddress
import os
import socket
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from dunlin.model.addresses import IPAddress, IPNetwork

S = TypeVar("S", bound="CommonSettings")


class SettingsError(Exception):
    """A setting that cannot be used; the message names the variable or flag, and the value."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one field: `env` its variable, `flag` its option."""

    name: str
    env: str
    flag: str
    kind: Any
    default: Any
    unit: str
    doc: str
    low: float | None
    high: float | None


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    env: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """
    A dataclass field with its documentation; `default` may be a callable that makes it.

    Args:
        env: the variable, where it is not DUNLIN_<FIELD>.
        low, high: bounds of a number, both allowed.
    """
    metadata = {"doc": doc, "unit": unit, "env": env, "low": low, "high": high}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_replica() -> str:
    """`<hostname>-<pid>`: unique among the live processes of a cluster."""
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every service takes."""

    nats_url: str = setting(
        "nats://127.0.0.1:4222",
        "NATS servers, comma-separated; the user in it names the inbox, also without a password.",
        env="NATS_URL",
    )
    nats_creds: str = setting(
        "",
        "File of an nkey seed (SU…) or of NATS user credentials; read at each connect.",
    )
    nats_ca: str = setting("", "PEM file of authorities for the NATS server's certificate.")
    nats_cert: str = setting("", "PEM file of this client's certificate for NATS.")
    nats_key: str = setting("", "PEM file of this client's key for NATS.")
    nats_replicas: int = setting(1, "Copies of each stream.", low=1, high=5)
    nats_make_streams: bool = setting(
        default=True,
        doc="Make and change streams; false: wait until a service that may has made them.",
    )
    replica: str = setting(default_replica, "Name of this process among its kind.")
    api_host: str = setting("127.0.0.1", "Address that the REST API binds.")
    api_port: int = setting(0, "TCP port of the REST API; 0: any free one.", low=0, high=65535)
    api_token: str = setting("", "File holding the bearer token of the REST API; empty: no token.")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Lowest level that is logged."
    )
    log_format: Literal["json", "console"] = setting("json", "How log lines look.")
    stop_timeout_s: float = setting(
        5.0, "How long a clean stop may take.", unit="seconds", low=0.1, high=300
    )


def describe(cls: type[CommonSettings]) -> Iterator[Setting]:
    """Every setting of a service, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        meta = field.metadata
        assert "doc" in meta, f"{cls.__name__}.{field.name} is not made by setting()"
        factory = field.default_factory
        yield Setting(
            name=field.name,
            env=meta["env"] or f"DUNLIN_{field.name.upper()}",
            flag="--" + field.name.replace("_", "-"),
            kind=hints[field.name],
            default=field.default if factory is dataclasses.MISSING else factory(),
            unit=meta["unit"],
            doc=meta["doc"],
            low=meta["low"],
            high=meta["high"],
        )


def _parse_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    try:
        return words[text.lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


def _parse_int(text: str) -> int:
    return int(text, 0)


_SCALARS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (_parse_int, "a whole number"),
    float: (float, "a number"),
    bool: (_parse_bool, "true or false"),
    Path: (Path, "a path"),
    IPAddress: (ipaddress.ip_address, "an IP address"),
    IPNetwork: (ipaddress.ip_network, "an IP network without host bits"),
}


def _parser(kind: Any) -> tuple[Callable[[str], Any], str]:
    """How text becomes a value of `kind`, and what to call it in an error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _one_of(args), "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType) and type(None) in args:
        (inner,) = (arg for arg in args if arg is not type(None))
        parse, word = _parser(inner)
        return (lambda text: parse(text) if text else None), f"{word}, or nothing"
    if origin is tuple and args[1:] == (...,):
        parse, word = _parser(args[0])
        return (
            lambda text: tuple(parse(part) for part in _parts(text))
        ), f"{word}, comma-separated"
    if kind not in _SCALARS:
        raise TypeError(f"no text form for settings of type {kind}")
    return _SCALARS[kind]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _one_of(choices: tuple[Any, ...]) -> Callable[[str], Any]:
    by_text = {str(choice): choice for choice in choices}

    def parse(text: str) -> Any:
        if text not in by_text:
            raise ValueError(f"not one of {', '.join(by_text)}")
        return by_text[text]

    return parse


def _value(item: Setting, source: str, text: str) -> Any:
    parse, word = _parser(item.kind)
    try:
        value = parse(text)
    except ValueError as error:
        raise SettingsError(f"{source}={text!r}: expected {word} ({error})") from error
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if item.low is not None and not value >= item.low:
            raise SettingsError(f"{source}={text!r}: must be at least {item.low:g}")
        if item.high is not None and not value <= item.high:
            raise SettingsError(f"{source}={text!r}: must be at most {item.high:g}")
    return value


def _flags(argv: Sequence[str], known: Mapping[str, Setting]) -> dict[str, str]:
    """Flag -> text; `--flag value`, `--flag=value`, and `--flag` alone for booleans."""
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        item = known.get(flag)
        if item is None:
            raise SettingsError(f"{flag}: no such option (--help lists them)")
        if not equals:
            if item.kind is bool and (not words or words[0].startswith("--")):
                text = "true"
            elif words:
                text = words.pop(0)
            else:
                raise SettingsError(f"{flag}: needs a value")
        found[flag] = text
    return found


def load(cls: type[S], argv: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> S:
    """
    The settings of one service: flags before environment before defaults.

    Args:
        argv: without the program's name. An empty variable counts as not set.
    Raises:
        SettingsError: naming the variable or flag, the value and what was expected.
    """
    environ = os.environ if environ is None else environ
    items = {item.flag: item for item in describe(cls)}
    flags = _flags(argv, items)
    values: dict[str, Any] = {}
    for flag, item in items.items():
        if flag in flags:
            values[item.name] = _value(item, flag, flags[flag])
        elif environ.get(item.env):
            values[item.name] = _value(item, item.env, environ[item.env])
    return cls(**values)


def load_or_exit(cls: type[S], argv: Sequence[str] | None = None) -> S:
    """`load` for a program: prints help (exit 0) or the error (exit 2) itself."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        sys.stdout.write(help_text(cls))
        raise SystemExit(0)
    try:
        return load(cls, words)
    except SettingsError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


def show(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def help_text(cls: type[CommonSettings]) -> str:
    """What `--help` prints: flag, variable, kind, default, unit and meaning of every setting."""
    lines = [(cls.__doc__ or "").strip(), ""]
    for item in describe(cls):
        made = item.name == "replica"
        default = "<hostname>-<pid>" if made else show(item.default) or "none"
        unit = f" {item.unit}" if item.unit else ""
        lines.append(f"  {item.flag} ({item.env}), {_parser(item.kind)[1]}")
        lines.append(f"      {item.doc} Default: {default}{unit}.")
    return "\n".join(lines) + "\n"
