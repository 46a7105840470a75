"""
Conntrack zones in OVSDB: Datapath, CT_Zone and CT_Timeout_Policy of the datapath netdev.

Runs in the session's thread. Source: ovs-vswitchd.conf.db(5).
"""

from typing import Any, Final

from ovs.db.idl import Transaction

from dunlin_agent.adapters.ovsdb_rows import first, root_of
from dunlin_agent.adapters.ovsdb_session import Tables
from dunlin_agent.timeouts.core import ZonePolicy, ZoneWrite

DATAPATH_TYPE: Final = "netdev"
MARK: Final = "dunlin"
"""In external_ids of what is ours."""


def read_policies(tables: Tables) -> dict[int, ZonePolicy]:
    """Zone -> its timeouts; a zone without any is left out."""
    datapath = root_of(tables).datapaths.get(DATAPATH_TYPE)
    if datapath is None:
        return {}
    rows = {zone: first(row.timeout_policy, None) for zone, row in datapath.ct_zones.items()}
    return {zone: _policy_of(row) for zone, row in rows.items() if row is not None}


def write_policies(tables: Tables, transaction: Transaction, write: ZoneWrite) -> None:
    """As `write` says; zones and policies that are not ours stay as they are."""
    root = root_of(tables)
    datapath = root.datapaths.get(DATAPATH_TYPE)
    if datapath is None:
        datapath = transaction.insert(tables["Datapath"])
        root.datapaths = {**root.datapaths, DATAPATH_TYPE: datapath}
    before = dict(getattr(datapath, "ct_zones", {}))
    zones = dict(before)
    if write.zones:
        policy = _own_row(before) or transaction.insert(tables["CT_Timeout_Policy"])
        policy.timeouts = write.policy.timeouts
        policy.external_ids = {MARK: write.policy.mark}
        for zone in write.zones:
            zones[zone] = _with_policy(tables, transaction, before.get(zone), policy)
    for zone in write.gone:
        row = zones[zone]
        row.timeout_policy = []
        # An operator may have set a limit of connections on it.
        if MARK in row.external_ids and not getattr(row, "limit", None):
            del zones[zone]
    if zones.keys() != before.keys():
        datapath.ct_zones = zones


def _policy_of(row: Any) -> ZonePolicy:
    return ZonePolicy(timeouts=dict(row.timeouts), mark=row.external_ids.get(MARK, ""))


def _own_row(zones: dict[int, Any]) -> Any | None:
    """The CT_Timeout_Policy of ours, which our zones share."""
    for zone in zones.values():
        policy = first(zone.timeout_policy, None)
        if policy is not None and _policy_of(policy).mark:
            return policy
    return None


def _with_policy(tables: Tables, transaction: Transaction, zone: Any | None, policy: Any) -> Any:
    """The zone's row, which has that policy."""
    if zone is None:
        zone = transaction.insert(tables["CT_Zone"])
        zone.external_ids = {MARK: "zone"}
    if getattr(zone, "timeout_policy", None) != [policy]:
        zone.timeout_policy = [policy]
    return zone
