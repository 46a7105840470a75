"""Every option of the watcher."""

from dataclasses import dataclass

from dunlin.service.settings import CommonSettings, setting


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """Dunlin watcher: turns what the Kubernetes API holds into facts."""

    kubeconfig: str = setting(
        "",
        "Kubeconfig file; empty: the Pod's service account, else the user's default file.",
        env="KUBECONFIG",
    )
    page_size: int = setting(500, "Objects asked for in one page of a list.", low=1, high=10_000)
    publish_batch: int = setting(500, "Messages published in one go.", low=1, high=4096)
    lease_ttl_s: float = setting(
        5.0,
        "How long a silent active watcher stays the active one.",
        unit="seconds",
        low=1,
        high=60,
    )
    tombstone_age_s: float = setting(
        24 * 3600.0,
        "What was deleted is forgotten after this; longer than any reader is ever away.",
        unit="seconds",
        low=60,
    )
    janitor_period_s: float = setting(
        600.0, "How often old tombstones are looked for; 0: never.", unit="seconds", low=0
    )
