"""Every setting of flowctl."""

from dataclasses import dataclass

from dunlin.service.settings import CommonSettings, setting


@dataclass(frozen=True, kw_only=True)
class FlowctlSettings(CommonSettings):
    """Settings of flowctl: it compiles intents, writes them to switches, acknowledges."""

    openflow_listen: tuple[str, ...] = setting(
        ("tcp:127.0.0.1:6653",),
        "Where switches connect: tcp:HOST:PORT, ssl:HOST:PORT, unix:PATH; port 0: any free one.",
    )
    openflow_connect: tuple[str, ...] = setting(
        (), "Switches that flowctl connects to: tcp:HOST:PORT, ssl:HOST:PORT, unix:PATH."
    )
    openflow_cert: str = setting("", "PEM file of the certificate shown to switches (ssl).")
    openflow_key: str = setting("", "PEM file of its private key.")
    openflow_ca: str = setting("", "PEM file of the authorities of the switches' certificates.")
    handshake_timeout_s: float = setting(
        10.0, "A peer that has not said who it is by then is closed.", unit="seconds", low=0.1
    )
    handshaking_max: int = setting(
        1024, "Connections that have not said who they are yet, at one time.", low=1
    )
    unknown_max: int = setting(
        256, "Connections of switches that no switch intent names, at one time.", low=1
    )
    echo_interval_s: float = setting(
        5.0, "Silence after which a switch is asked; dead after three.", unit="seconds", low=0.05
    )
    write_timeout_s: float = setting(
        30.0, "A switch that takes nothing for so long is closed.", unit="seconds", low=0.1
    )
    reply_timeout_s: float = setting(
        60.0, "A switch that owes a reply for so long is closed.", unit="seconds", low=0.1
    )
    bundle_max: int = setting(
        5000, "Messages in one bundle; larger changes take several.", low=1, high=1_000_000
    )
    dump_max: int = setting(4_000_000, "Flows or groups of one dump; more closes the session.")
    audit_interval_s: float = setting(
        60.0,
        "How often a switch is compared with its intents (jittered), if the next one allows it.",
        unit="seconds",
        low=0.1,
    )
    audit_share: float = setting(
        0.1,
        "The part of the time that these comparisons may take, all together.",
        low=0.001,
        high=1,
    )
    remove_foreign: bool = setting(
        default=True, doc="Delete flows that are not Dunlin's from the integration bridges."
    )
    lease_ttl_s: float = setting(
        3.0, "A replica that is silent for so long loses its switches.", unit="seconds", low=0.5
    )
    applied_interval_s: float = setting(
        0.02, "Acknowledgements of one switch are at least so far apart.", unit="seconds", low=0.0
    )
    applied_refresh_s: float = setting(
        5.0, "A revision that moved without work is published after this.", unit="seconds", low=0.1
    )
    reject_rate: float = setting(
        1000.0,
        "Refusals (TCP RST, ICMP unreachable) a second for one switch in the long run.",
        low=0.0,
    )
    reject_burst: float = setting(250.0, "Refusals for one switch at once.", low=1.0)
    deny_log_sample: int = setting(
        20, "Denied packets a second that one switch sends to be logged (a meter).", low=1
    )
    deny_log_rate: float = setting(
        50.0, "Denied streams a second that are logged, of all switches together.", low=0.0
    )
    deny_log_burst: float = setting(200.0, "Denied streams logged at once.", low=1.0)
    deny_log_window_s: float = setting(
        10.0, "A denied stream is logged once in so long.", unit="seconds", low=0.0
    )
    counters_interval_s: float = setting(
        1.0, "Counters are read from a switch at most this often.", unit="seconds", low=0.0
    )
