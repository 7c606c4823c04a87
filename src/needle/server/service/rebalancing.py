"""The calls of protocol.rebalance_calls, answered by the node that leads the catalog."""

from __future__ import annotations

from typing import Any

from needle.protocol.rebalance_calls import PLAN, PROGRESS, PlanCall, ProgressAnswer, ProgressCall
from needle.routing.plans import Plan
from needle.server.service.served import call_timeout
from needle.server.upkeep.coordinator import Coordinator


def methods(coordinator: Coordinator) -> dict[str, tuple[Any, Any]]:
    """By name: what each takes, and what answers it."""

    async def plan(call: PlanCall) -> Plan:
        return await coordinator.plan(call.wish, call_timeout(call.timeout))

    async def progress(call: ProgressCall) -> ProgressAnswer:
        return ProgressAnswer(await coordinator.progress(call_timeout(call.timeout)))

    return {PLAN: (PlanCall, plan), PROGRESS: (ProgressCall, progress)}
