"""Keeps the kernel's rules and routes as the Services want them, while br-int can serve them."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from dunlin.events.intents import ServicePortIntent
from dunlin.model.ids import IntentId
from dunlin.service.pulse import Pulse
from dunlin_agent.adapters.node_net import NodeNet
from dunlin_agent.adapters.vswitchd import Vswitchd
from dunlin_agent.intents import NodeIntent
from dunlin_agent.metrics import AgentMetrics
from dunlin_agent.steering.core import Frontend, Ports, Steered, Steering, refused
from dunlin_agent.steering.kernel import SteeringError, SteeringKernel

LOOK_AGAIN_SECONDS: Final = 0.5
SETTLE_SECONDS: Final = 0.05
AUDIT_SECONDS: Final = 300.0
RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 0.2, 5.0

log = structlog.get_logger(__name__)


class Steer:
    """
    `served`: br-int's pipeline takes what the kernel would send; asked again until it does.

    `told`: called when `own_frontends` may be others.
    """

    def __init__(
        self,
        kernel: SteeringKernel,
        net: NodeNet,
        vswitchd: Vswitchd,
        served: Callable[[], Awaitable[bool]],
        node_ports: Ports,
        metrics: AgentMetrics,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._told = told
        self._kernel = kernel
        self._net = net
        self._vswitchd = vswitchd
        self._served = served
        self._metrics = metrics
        self._core = Steering(node_ports)
        self._known = False
        self._changed = Pulse()
        self._present: Steered | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="steering")

    async def close(self) -> None:
        """The kernel's state stays: processes reach Services also while no agent runs."""
        await asyncio.to_thread(self._thread.shutdown)
        self._kernel.close()

    # --- in: a listener of intents ----------------------------------------------------------------

    def put(self, intent: NodeIntent, _seq: int) -> None:
        """A newer version of an intent."""
        if isinstance(intent, ServicePortIntent):
            for ip in refused(intent):
                self._metrics.common.bad_input("ServicePortIntent", "special address")
                log.warning("not for the node's own processes", object=intent.object, ip=str(ip))
        self._note(changed=self._core.put(intent))

    def remove(self, intent_id: IntentId) -> None:
        """An intent is gone."""
        self._note(changed=self._core.remove(intent_id))

    def clear(self) -> None:
        """Nothing is known; the kernel keeps what it has until all is known again."""
        self._core.clear()
        self._known = False

    def settled(self) -> None:
        """All is known."""
        if not self._known:
            self._known = True
            self._note(changed=True)

    def _note(self, *, changed: bool) -> None:
        if changed and self._known:
            self._changed.beat()
            self._told()

    def own_frontends(self) -> frozenset[Frontend] | None:
        """Frontends at the node's own addresses; None: not known yet."""
        return self._core.own_frontends() if self._known else None

    # --- out --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """
        Steer while ovs-vswitchd lives and its pipeline stands; for ever.

        When it dies the rules go first: the node's processes reach each other past it at once.
        """
        while True:
            await self._until_served()
            keeping = asyncio.create_task(self._keep())
            try:
                await self._vswitchd.wait_gone()
            finally:
                keeping.cancel()
                with suppress(asyncio.CancelledError):
                    await keeping
            self._present = None
            await self._write(Steered())

    async def _until_served(self) -> None:
        while True:
            if await self._served():
                return
            # The pipeline comes over another connection: nothing here announces it for sure.
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _keep(self) -> None:
        """Write what differs whenever something has changed, here or in the kernel; for ever."""
        watching = asyncio.create_task(self._watch_kernel())
        pause = RETRY_MIN_SECONDS
        try:
            while True:
                changed = self._changed.take()
                done = not self._known or await self._write(self._core.wanted())
                pause = RETRY_MIN_SECONDS if done else min(pause * 2, RETRY_MAX_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(AUDIT_SECONDS if done else pause):
                        await changed.wait()
                        await asyncio.sleep(SETTLE_SECONDS)
                        continue
                self._present = None
        finally:
            watching.cancel()

    async def _watch_kernel(self) -> None:
        """Somebody tidies up rules: look at all of it again. Our own changes come here too."""
        async for _ in self._net.changes("rule"):
            self._present = None
            self._changed.beat()

    async def _write(self, wanted: Steered) -> bool:
        """True when the kernel holds it."""
        loop = asyncio.get_running_loop()
        try:
            changed = await loop.run_in_executor(self._thread, partial(self._bring, wanted))
        except SteeringError as error:
            self._metrics.steering_failures.inc()
            log.warning("the node's processes do not reach every Service", error=str(error))
            return False
        self._metrics.steering_routes.set(len(wanted.routes))
        if changed:
            log.info("steered", rules=len(wanted.rules), routes=len(wanted.routes))
        return True

    def _bring(self, wanted: Steered) -> bool:
        present = self._present
        if present is None:
            present = self._kernel.read()
        self._present = None  # Until all has been written.
        if present != wanted:
            self._kernel.write(wanted, present)
        self._present = wanted
        return present != wanted
