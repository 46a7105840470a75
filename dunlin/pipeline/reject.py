"""How the controller's refusal gets to the client: through the pipeline, as a reply does."""

from dunlin.openflow.flow import Action, Match, Resubmit, set_field
from dunlin.pipeline.layout import AS_IS, EXTERNAL_PKT_MARK, FLAGS, Table

_FORWARD: tuple[Action, ...] = (Resubmit(int(Table.L3_FORWARD)),)
_OUTSIDE: tuple[Action, ...] = (set_field(FLAGS, AS_IS.pair), *_FORWARD)


def reply_actions(metadata: Match) -> tuple[Action, ...]:
    """
    Of the packet-out (its in_port is the controller), by the packet-in's metadata.

    L3Forward knows every client's place: a Pod of this node, the node itself, a Pod elsewhere;
    to the world outside the answer goes without source NAT. MAC addresses are written anew there.
    """
    outside = any(m.field == "pkt_mark" and m.value == EXTERNAL_PKT_MARK for m in metadata)
    return _OUTSIDE if outside else _FORWARD
