"""What REST answers, as OpenAPI shows it."""

from typing import Any

from pydantic import BaseModel, Field


class AppliedErrorModel(BaseModel):
    """An intent that a switch does not hold as asked."""

    intent: str
    object: str = Field(description="The Kubernetes object behind it, `<kind>/<namespace>/<name>`.")
    revision: int
    reason: str


class SwitchModel(BaseModel):
    """One switch: what its owner acknowledged last, and this replica's session with it."""

    node: str
    dpid: str = Field(description="16 hex digits.")
    connected: bool = Field(description="Its owner has a session with it.")
    revision: int = Field(description="It holds every intent up to here, but `errors`.")
    epoch: str = Field(description="Life of the intent stream that `revision` counts in.")
    flows: int
    groups: int
    pending: int = Field(description="Intents that it lacks.")
    errors: list[AppliedErrorModel]
    programming_ms: float | None = Field(description="From the newest change to its barrier.")
    owner: str = Field(description="The flowctl replica that writes to it; empty: none known.")
    peer: str = Field(description="Where this replica's session comes from; empty: no session.")
    role: str = Field(description="OpenFlow role of this replica: master, slave, equal; or empty.")


class Switches(BaseModel):
    """All switches that have an intent, a fact or an acknowledgement, by node."""

    items: list[SwitchModel]


class FlowModel(BaseModel):
    """One flow on a switch, in the words of ovs-ofctl."""

    table: str = Field(description="By its name in the pipeline.")
    table_id: int
    priority: int
    match: str
    actions: str
    cookie: str
    intent: str = Field(description="Where it comes from; empty: no intent of today explains it.")
    object: str
    packets: int
    bytes: int
    duration_s: float
    idle_timeout_s: int
    hard_timeout_s: int


class Flows(BaseModel):
    """Flows by table, then priority downwards."""

    items: list[FlowModel]


class BucketModel(BaseModel):
    """One bucket of a group."""

    bucket_id: int
    weight: int
    actions: str


class GroupModel(BaseModel):
    """One group on a switch."""

    group_id: int
    type: str
    selection_method: str
    intent: str
    object: str
    buckets: list[BucketModel]


class Groups(BaseModel):
    """Groups by id."""

    items: list[GroupModel]


class IntentOnSwitch(BaseModel):
    """One intent on one switch."""

    node: str
    in_force: bool
    revision: int = Field(description="What the switch holds of all intents.")
    error: str = ""


class IntentModel(BaseModel):
    """One intent and where it is in force."""

    id: str
    kind: str
    scope: str
    key: str
    object: str
    revision: int = Field(description="Sequence of its newest version.")
    published_ms: int
    trigger_ms: int | None
    cookie: str
    switches: int = Field(description="Switches that it concerns.")
    in_force: int = Field(description="… that hold it.")
    lacking: list[IntentOnSwitch] = Field(description="… that do not, at most 100.")
    applied: dict[str, int] = Field(
        description="Node -> revision its switch holds; only with applied=true or for one intent."
    )


class IntentDetail(IntentModel):
    """One intent with its content."""

    intent: dict[str, Any]
    error: str = Field(description="Why its newest version cannot be used; or empty.")


class Intents(BaseModel):
    """Intents by id; `next` is the id after which to ask again, empty at the end."""

    items: list[IntentModel]
    next: str = ""


class MissingModel(BaseModel):
    """An intent that a switch lacks."""

    intent: str
    object: str


class SwitchWaitModel(BaseModel):
    """One switch of a wait."""

    node: str
    applied: bool
    revision: int
    reason: str
    missing: list[MissingModel]


class WaitModel(BaseModel):
    """Whether all that the Kubernetes API held when asked is in force on every switch."""

    applied: bool
    stage: str = Field(description="watcher, intents or switches: what was waited for last.")
    reason: str
    fact_seq: int
    revision: int
    switches: list[SwitchWaitModel]


class IntentCounters(BaseModel):
    """Packets and bytes over all flows of one intent."""

    intent: str
    object: str
    flows: int
    packets: int
    bytes: int


class FlowCounters(BaseModel):
    """One flow of an intent."""

    intent: str
    table: str
    table_id: int
    match: str
    packets: int
    bytes: int


class PortCountersModel(BaseModel):
    """One port, seen from the switch; null: not counted."""

    port: int
    name: str
    intent: str = Field(description="The endpoint intent of that port; or empty.")
    object: str
    rx_packets: int | None
    tx_packets: int | None
    rx_bytes: int | None
    tx_bytes: int | None
    rx_dropped: int | None
    tx_dropped: int | None
    rx_errors: int | None
    tx_errors: int | None


class BucketCounters(BaseModel):
    """One bucket: connections (packets) that it was chosen for."""

    bucket_id: int
    actions: str
    endpoint: str = Field(description="`address:port` that it translates to; or empty.")
    packets: int
    bytes: int


class GroupCountersModel(BaseModel):
    """One group."""

    group_id: int
    intent: str
    object: str
    packets: int
    bytes: int
    buckets: list[BucketCounters]


class ServiceTraffic(BaseModel):
    """What one endpoint of one ServicePort and its clients on this switch sent each other."""

    endpoint_number: str = Field(
        description="16 hex digits: the endpoint's number in ct_label (dunlin/pipeline/traffic.py)."
    )
    packets: int
    bytes: int


class RuleCounters(BaseModel):
    """
    One conjunction of one rule of a policy on one switch.

    Accept: packets of the connections that it allowed, in both directions; one-way and SCTP
    packets too. Deny and Pass: packets that it decided about.
    """

    intent: str
    object: str = Field(description="`networkpolicy/<namespace>/<name>` or a cluster-wide one.")
    conj_id: int
    direction: str = Field(description="ingress or egress.")
    rule: int = Field(description="Index of the rule in its direction, as the object lists them.")
    name: str = Field(description="Of the rule, where the API has one.")
    action: str = Field(description="Accept, Deny or Pass.")
    packets: int
    bytes: int
    connections: int | None = Field(
        description="Packets of connections never judged before; null for Deny, Pass."
    )


class DeniedCounters(BaseModel):
    """What no rule allowed, of the Pods that the same policies select on one switch."""

    intent: str
    direction: str = Field(description="ingress or egress.")
    policies: list[str] = Field(description="Who isolates: `<namespace>/<name>` of each.")
    packets: int
    bytes: int


class BandwidthCounters(BaseModel):
    """What a Pod's limit dropped. `direction` as the Pod sees it; `limit_kbps`: 1,000 bit/s."""

    intent: str
    object: str
    direction: str
    limit_kbps: int
    dropped_packets: int
    dropped_bytes: int


class Counters(BaseModel):
    """Live counters of one switch. `at_ms`: Unix milliseconds when they were read."""

    node: str
    at_ms: int
    intents: list[IntentCounters]
    flows: list[FlowCounters] = Field(description="Flows of route and service intents, one by one.")
    ports: list[PortCountersModel]
    groups: list[GroupCountersModel]
    services: list[ServiceTraffic] = Field(
        description="Service endpoints with clients here; those without traffic are left out."
    )
    rules: list[RuleCounters] = Field(default=[], description="Of policies, by rule.")
    denied: list[DeniedCounters] = Field(default=[], description="Of isolated Pods, by policies.")
    bandwidth: list[BandwidthCounters] = Field(default=[], description="Of Pods with a limit.")
