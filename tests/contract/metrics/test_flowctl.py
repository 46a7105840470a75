"""What flowctl answers is what the metrics service reads."""

import json
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from dunlin_flowctl import models
from dunlin_metrics import counters

PAIRS: list[tuple[type[msgspec.Struct], type[BaseModel]]] = [
    (counters.Switch, models.SwitchModel),
    (counters.Switches, models.Switches),
    (counters.Flow, models.FlowCounters),
    (counters.Port, models.PortCountersModel),
    (counters.Bucket, models.BucketCounters),
    (counters.Group, models.GroupCountersModel),
    (counters.Rule, models.RuleCounters),
    (counters.Denied, models.DeniedCounters),
    (counters.Bandwidth, models.BandwidthCounters),
    (counters.Counters, models.Counters),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[ours.__name__ for ours, _ in PAIRS])
def test_every_field_that_is_read_is_written(
    ours: type[msgspec.Struct], theirs: type[BaseModel]
) -> None:
    """No field is read that flowctl does not have."""
    assert set(ours.__struct_fields__) <= theirs.model_fields.keys()


def test_an_answer() -> None:
    """A whole answer of flowctl's models, decoded."""
    port: dict[str, Any] = {
        "port": 11, "name": "veth", "intent": "n1/endpoint/default/p/eth0", "object": "",
        "rx_packets": 1, "tx_packets": 2, "rx_bytes": 3, "tx_bytes": 4,
        "rx_dropped": None, "tx_dropped": 6, "rx_errors": 0, "tx_errors": 0,
    }  # fmt: skip
    flow = {
        "intent": "all/route/n2", "table": "L3Forward", "table_id": 60, "match": "ip",
        "packets": 7, "bytes": 8,
    }  # fmt: skip
    bucket = {
        "bucket_id": 0, "actions": "ct(…)", "endpoint": "10.0.0.1:80", "packets": 9, "bytes": 10,
    }  # fmt: skip
    group = {
        "group_id": 1, "intent": "all/service/x", "object": "service/x", "packets": 9, "bytes": 10,
        "buckets": [bucket],
    }  # fmt: skip
    answer = models.Counters.model_validate(
        {
            "node": "n1",
            "at_ms": 1,
            "intents": [],
            "flows": [flow],
            "ports": [port],
            "groups": [group],
            "services": [{"endpoint_number": "5".zfill(16), "packets": 11, "bytes": 12}],
        }
    )
    found = msgspec.json.decode(answer.model_dump_json(), type=counters.Counters)
    (read_port,), (read_flow,), (read_group,) = found.ports, found.flows, found.groups
    assert (read_port.tx_bytes, read_port.rx_dropped, read_port.tx_dropped) == (4, None, 6)
    assert (read_flow.intent, read_flow.bytes) == ("all/route/n2", 8)
    assert [(b.endpoint, b.packets) for b in read_group.buckets] == [("10.0.0.1:80", 9)]
    (traffic,) = found.services
    assert (traffic.endpoint_number, traffic.packets, traffic.bytes) == ("5".zfill(16), 11, 12)
    assert json.loads(answer.model_dump_json())["node"] == found.node
