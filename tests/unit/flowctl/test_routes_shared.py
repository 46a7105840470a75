"""What routes cost: one program for all switches, whatever their number."""

from dunlin.openflow.flow import Flow
from dunlin.pipeline.layout import Table
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.core.sync import Rules, plan_sync
from tests.fixtures import cluster

NODES = range(1, 6)


def known() -> Desired:
    """Five nodes, all managed."""
    desired = Desired(PipelineCompiler())
    intents = [make(number) for number in NODES for make in (cluster.switch, cluster.route)]
    for revision, intent in enumerate(intents, 1):
        desired.upsert(IntentVersion(intent, revision))
    for number in NODES:
        assert desired.manage(f"n{number}") is not None
    return desired


def test_a_node_changes_once_for_all() -> None:
    """Every switch is given the very same value, and nothing of it is its own."""
    desired = known()
    changed = cluster.route(2, encapsulation="tunnel")
    assert desired.upsert(IntentVersion(changed, 100)) == {f"n{number}" for number in NODES}
    parts = {id(desired.get(f"n{number}", changed.id)) for number in NODES}
    assert len(parts) == 1
    for number in NODES:
        assert changed.id not in desired.switches[f"n{number}"].own.effective


def test_a_new_pipeline_stands_before_what_leads_to_it() -> None:
    """A switch of the release before: NextHop and Beyond are written before any route."""
    desired = known()
    flows = plan_sync(desired.parts("n1"), {}, {}, Rules()).changes.flows_put
    tables = [step.content.table for step in flows if isinstance(step.content, Flow)]
    routes = [place for place, step in enumerate(flows) if step.intent_id == cluster.route(2).id]
    last = max(place for place, table in enumerate(tables) if table == Table.NEXT_HOP)
    assert routes
    assert last < min(routes)
