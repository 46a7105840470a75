"""What flowctl's `GET /v1/switches[/{node}/counters]` answers, as far as it is used."""

import msgspec


class Switch(msgspec.Struct, frozen=True):
    """One switch as one replica sees it; `peer` is "" where that replica has no session with it."""

    node: str
    peer: str = ""
    role: str = ""


class Switches(msgspec.Struct, frozen=True):
    """`GET /v1/switches`."""

    items: tuple[Switch, ...] = ()


class Flow(msgspec.Struct, frozen=True):
    """One flow; flowctl shows those of routes and Services."""

    intent: str
    table_id: int
    match: str
    packets: int
    bytes: int


class Port(msgspec.Struct, frozen=True):
    """One port, seen from the switch: rx is what it received. None: not counted."""

    port: int
    name: str = ""
    intent: str = ""
    rx_packets: int | None = None
    tx_packets: int | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    rx_dropped: int | None = None
    tx_dropped: int | None = None


class Bucket(msgspec.Struct, frozen=True):
    """One bucket; `endpoint`: `10.0.1.5:80`, "" where unknown or if it leads to a group."""

    bucket_id: int
    packets: int
    bytes: int
    endpoint: str = ""


class Group(msgspec.Struct, frozen=True):
    """One select group."""

    group_id: int
    intent: str = ""
    buckets: tuple[Bucket, ...] = ()


class Traffic(msgspec.Struct, frozen=True):
    """What one endpoint of one ServicePort and its clients on a switch sent each other."""

    endpoint_number: str
    packets: int
    bytes: int


class Rule(msgspec.Struct, frozen=True):
    """One conjunction of a policy's rule; `connections` None: it is no rule that accepts."""

    intent: str
    conj_id: int
    direction: str
    rule: int
    packets: int
    bytes: int
    name: str = ""
    action: str = "Accept"
    connections: int | None = None


class Denied(msgspec.Struct, frozen=True):
    """What no rule allowed; `policies` isolate."""

    intent: str
    direction: str
    packets: int
    bytes: int
    policies: tuple[str, ...] = ()


class Bandwidth(msgspec.Struct, frozen=True):
    """What the limit of a Pod's interface dropped; `direction` as the Pod sees it."""

    intent: str
    direction: str
    dropped_packets: int
    dropped_bytes: int


class Counters(msgspec.Struct, frozen=True):
    """Everything of one switch."""

    node: str
    flows: tuple[Flow, ...] = ()
    ports: tuple[Port, ...] = ()
    groups: tuple[Group, ...] = ()
    services: tuple[Traffic, ...] = ()
    rules: tuple[Rule, ...] = ()
    denied: tuple[Denied, ...] = ()
    bandwidth: tuple[Bandwidth, ...] = ()
