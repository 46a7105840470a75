"""A change is written to all switches that wait for work, before their tasks have a turn."""

import pytest

from dunlin_flowctl.changes import Changes
from dunlin_flowctl.handles import Handles
from tests.scenario.flowctl.scenes import one_switch
from tests.scenario.flowctl.test_back_pressure import a_world, committed
from tests.unit.flowctl.harness import until
from tests.unit.flowctl.programs import NODES, Change, service_intent, switch_intent


async def test_a_change_needs_no_task_of_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One encoding, one bundle for each switch, accounted for when it answers."""
    async with a_world() as (world, replica):
        before, made = committed(replica), replica.handles.cache.shared_made

        async def never(_self: Changes) -> None:
            raise AssertionError("a task of a switch wrote it")

        with monkeypatch.context() as patched:
            patched.setattr(Changes, "apply", never)
            for number in range(3):
                intent = service_intent("x", (number + 1, number + 2))
                world.history.append(Change(intent, gone=False))
                await world.settled(await world.cluster.intend(intent))
        assert committed(replica) - before == 3 * len(NODES)
        assert replica.handles.cache.shared_made - made == 3


async def test_a_task_that_looks_meanwhile_looks_again() -> None:
    """What woke a switch while it owed an answer is not forgotten."""
    async with one_switch([switch_intent("n1")]) as (cluster, flowctl, fake):
        runner = flowctl.handles.runners["n1"]
        assert runner.changes is not None
        audits = flowctl.sample("dunlin_flowctl_audits_total", cause="audit")
        changes = runner.changes
        start = changes.start

        def start_and_look() -> bool:
            started = start()
            if started:
                changes.audit_due = True
                runner.signal.notify()
            return started

        changes.start = start_and_look  # type: ignore[method-assign]
        seq = await cluster.intend(service_intent("x", (1, 2)))
        assert (await cluster.barrier("n1", seq)).applied
        await until(
            lambda: flowctl.sample("dunlin_flowctl_audits_total", cause="audit") == audits + 1,
            "audited",
        )
        assert not changes.busy
        assert len(fake.switch.groups) == 1


async def test_watermarks_of_one_change_wake_no_switch() -> None:
    """A watermark read before its intents takes the right to delete away and gives it back."""
    async with one_switch([switch_intent("n1"), service_intent("x", (1,))]) as (_, flowctl, _fake):
        handles: Handles = flowctl.handles
        runner = handles.runners["n1"]
        await until(lambda: runner.swept, "swept")
        woken = 0

        def notify() -> None:
            nonlocal woken
            woken += 1

        runner.signal.notify = notify  # type: ignore[method-assign]
        read = handles.desired.read
        handles.desired.read = -1
        assert not handles.may_delete
        handles.read_on()
        handles.desired.read = read
        assert handles.may_delete
        handles.read_on()
        assert woken == 0
        assert runner.changes is not None
        runner.changes.switch.leftovers = True
        handles.desired.read = -1
        handles.read_on()
        handles.desired.read = read
        handles.read_on()
        assert woken == 1
