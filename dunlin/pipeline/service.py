"""A ServicePort on its cluster IPs: one flow an address, one select group a family."""

from dunlin.events.intents import ServiceAddress, ServiceEndpoint, ServicePortIntent
from dunlin.openflow.flow import Action, Ct, Group, Nat, Program, ToGroup, set_field
from dunlin.pipeline.base import FlowMaker
from dunlin.pipeline.families import family_of
from dunlin.pipeline.layout import SERVICE, Priority, Table, Zone
from dunlin.pipeline.spread import spread_groups

_MARK = (set_field("ct_mark", SERVICE.pair),)


def compile_service(intent: ServicePortIntent) -> Program:
    """The same program for every switch. An address without endpoints of its family drops."""
    make = FlowMaker(intent.id)
    groups: dict[int, Group] = {}
    for address in intent.addresses:
        version = address.ip.version
        endpoints = [e for e in intent.endpoints if e.ip.version == version]
        when = family_of(address.ip).to_port(address.ip, intent.protocol, intent.port)
        if not endpoints:
            make.add(Table.SERVICE_LB, Priority.EXACT, when)
            continue
        choose = (ToGroup(address.group_id),)
        make.add(Table.SERVICE_LB, Priority.EXACT, when, choose)
        for group in _groups(address, endpoints):
            groups.setdefault(group.group_id, group)
    return Program(tuple(make.flows), tuple(groups.values()))


def _groups(address: ServiceAddress, endpoints: list[ServiceEndpoint]) -> tuple[Group, ...]:
    return spread_groups(address.group_id, endpoints, _translate)


def _translate(endpoint: ServiceEndpoint) -> tuple[Action, ...]:
    """In the bucket itself: a new connection costs no upcall, and stays where it is."""
    nat = Nat("dst", endpoint.ip, endpoint.ip, endpoint.port, endpoint.port)
    return (Ct(Zone.MAIN, commit=True, table=Table.ENDPOINT_SELECTED, nat=nat, exec=_MARK),)
