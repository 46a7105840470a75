"""GET /v1/intents, /v1/facts, /v1/report."""

from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query

from dunlin import subjects, wire
from dunlin.bus.base import Bus
from dunlin.events.facts import AnyFact, Fact, kind_of
from dunlin.events.intents import AnyIntent
from dunlin.service.fact_reader import PREFIX, FactReader
from dunlin.service.http import not_found
from dunlin_planner.shell import Shell
from dunlin_planner.state import KINDS

LIMIT_MAX = 10_000
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]

FACT_TYPES: dict[str, type[Fact]] = {kind_of(t): t for t in AnyFact.__args__}


def router(shell: Shell, bus: Bus) -> APIRouter:
    """The planner's REST API."""
    api = APIRouter(prefix="/v1", tags=["planner"])
    _add_intents(api, shell)
    _add_facts(api, shell, bus)

    @api.get("/report")
    async def report() -> dict[str, Any]:
        """What is not honoured and why; facts that do not parse; how far this replica is."""
        return _report(shell)

    return api


def _add_intents(api: APIRouter, shell: Shell) -> None:
    @api.get("/intents")
    async def intents(
        scope: str = "",
        kind: str = "",
        object: str = "",  # noqa: A002 - the query's name
        limit: Limit = 1000,
    ) -> dict[str, Any]:
        """
        What this replica wants, sorted by id.

        `revision` is what stands in the stream (0: nothing yet).

        `object` is `service/default/web` or any part of it.
        """
        found = [
            (subject, intent)
            for subject, intent in sorted(shell.writer.desired.items())
            if scope in ("", intent.scope)
            and kind in ("", kind_of(type(intent)))
            and object in intent.object
        ]
        return {
            "items": [_shown(shell, *item) for item in found[:limit]],
            "total": len(found),
        }

    @api.get("/intents/{intent_id:path}")
    async def one_intent(intent_id: str) -> dict[str, Any]:
        """One intent by its id, `<scope>/<kind>/<key>`."""
        scope, _, rest = intent_id.partition("/")
        kind, _, key = rest.partition("/")
        subject = subjects.intent(scope, kind, key)
        if subject not in shell.writer.desired:
            raise not_found("intent in the shards of this replica", intent_id)
        return _shown(shell, subject, shell.writer.desired[subject])


def _add_facts(api: APIRouter, shell: Shell, bus: Bus) -> None:
    @api.get("/facts/{kind}")
    async def facts(kind: str, limit: Limit = 1000) -> dict[str, Any]:
        """The newest facts of one kind, by name: as planned with, else from the log."""
        if kind in KINDS:
            known = shell.state.facts[kind]
            return _page([known[name] for name in sorted(known)], limit)
        return _page(await _from_log(bus, _known(kind)), limit)

    @api.get("/facts/{kind}/{namespace}/{name:path}")
    async def one_fact(kind: str, namespace: str, name: str) -> Any:
        """One fact; namespace `_` where there is none."""
        subject = subjects.fact(_known(kind), "" if namespace == "_" else namespace, name)
        record = await bus.get_last(subject)
        if record is None or record.is_tombstone:
            raise not_found(kind, f"{namespace}/{name}")
        read = await FactReader(bus, FACT_TYPES, lambda _kind, _reason: None).read(record)
        if read is None:
            raise not_found(f"good fact of {kind}", f"{namespace}/{name}")
        return {"seq": record.seq, "time_ms": record.time_ms, **wire.to_builtins(read.fact)}


def _report(shell: Shell) -> dict[str, Any]:
    return {
        "items": [wire.to_builtins(finding) for finding in shell.findings()],
        "bad_facts": [
            {"object": subject.removeprefix(PREFIX), "error": reason}
            for subject, reason in sorted(shell.reader.bad.items())
        ],
        "shards": sorted(shell.state.shards),
        "fencing": shell.shards.fencing(),
        "complete": shell.complete,
        "fact_epoch": shell.epoch,
        "fact_seq": shell.seq,
        "intent_seq": shell.writer.seq,
        "pending": len(shell.writer.pending),
    }


def _shown(shell: Shell, subject: str, intent: AnyIntent) -> dict[str, Any]:
    standing = shell.writer.standing.get(subject)
    revision = standing.seq if standing and standing.digest is not None else 0
    return {"id": intent.id, "revision": revision, **wire.to_builtins(intent)}


def _known(kind: str) -> str:
    if kind not in FACT_TYPES:
        raise HTTPException(404, f"no facts of kind {kind}: there are {', '.join(FACT_TYPES)}")
    return kind


def _page(facts: list[Fact], limit: int) -> dict[str, Any]:
    return {"items": [wire.to_builtins(fact) for fact in facts[:limit]], "total": len(facts)}


async def _from_log(bus: Bus, kind: str) -> list[Fact]:
    """All facts of a kind that the planner does not keep."""
    reader = FactReader(bus, {kind: FACT_TYPES[kind]}, lambda _kind, _reason: None)
    found: list[Fact] = []
    async with aclosing(bus.follow(subjects.FACTS_STREAM, [subjects.facts_of(kind)])) as batches:
        async for batch in batches:
            for record in batch.records:
                read = await reader.read(record)
                if read is not None and read.fact is not None:
                    found.append(read.fact)
            if batch.caught_up:
                break
    return sorted(found, key=_order)


def _order(fact: Fact) -> tuple[str, str]:
    return fact.namespace, fact.name
