"""Every option of the metrics service."""

from dataclasses import dataclass

from dunlin.service.settings import CommonSettings, setting


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """Dunlin metrics: traffic of Pods, nodes and Services; topology; a page."""

    flowctl_urls: tuple[str, ...] = setting(
        (), "Base URLs of flowctl; a name that has several addresses stands for all of them."
    )
    flowctl_token: str = setting("", "File holding the bearer token of flowctl's REST API.")
    poll_interval_s: float = setting(
        5.0, "How often the counters of each switch are read.", unit="seconds", low=0.2, high=300
    )
    poll_timeout_s: float = setting(
        10.0,
        "A flowctl that does not answer by then is asked again next time.",
        unit="seconds",
        low=0.1,
    )
    polls_max: int = setting(16, "Switches that are read at the same time.", low=1, high=256)
    retention_s: float = setting(
        600.0, "How long counters of what is gone are still shown.", unit="seconds", low=1
    )
    policy_series_max: int = setting(
        2000, "Policy rules with series of their own in Prometheus; the rest is summed.", low=0
    )
