"""Follow and cancel the owner's orders: /v1/admin/tasks, also under /api."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec
from litestar import Response, delete, get
from litestar.params import FromPath
from msgspec import Struct

from hub.api.described import answer, as_events, as_json, errors, operation, path
from hub.api.events import KEEP_ALIVE, EventStream, encode_event
from hub.api.wire import AnyRequest
from hub.hub import Hub
from hub.library.orders import Add, Export, Import
from hub.library.tasks import Task, TaskState

ADMIN = {"admin": True}
"""On a hub with keys, for those alone that `admin_keys` names (hub.api.auth)."""
TASK_ID = path("task_id", "The task's id, as the order was answered.")


class TaskList(Struct, kw_only=True):
    """The newest first."""

    object: Literal["list"] = "list"
    data: list[TaskState]


class TaskDeleted(Struct, kw_only=True):
    """A task that had ended, and is forgotten."""

    id: str
    object: Literal["models.task"] = "models.task"
    deleted: Literal[True] = True


TaskEventType = Literal["task.progress", "task.completed", "task.failed", "task.cancelled"]
_TYPES: dict[str, TaskEventType] = {
    "in_progress": "task.progress",
    "completed": "task.completed",
    "failed": "task.failed",
    "cancelled": "task.cancelled",
}


class TaskEvent(Struct, kw_only=True):
    """`task.progress` while it is at work; then its end."""

    type: TaskEventType
    task: TaskState


def shown(state: TaskState) -> TaskState:
    """A task without this machine's paths."""
    order = state.order
    match order:
        case Add():
            order = msgspec.structs.replace(order, path=Path(order.path).name)
        case Export() | Import():
            order = msgspec.structs.replace(order, bundle=Path(order.bundle).name)
    if isinstance(order, Import):
        order = msgspec.structs.replace(order, trust=None)
    return msgspec.structs.replace(state, order=order)


@get(
    ["/v1/admin/tasks", "/api/admin/tasks"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(TaskList)}),
    responses=errors(403),
    summary="List tasks",
)
async def list_tasks(request: AnyRequest) -> Response[bytes]:
    """The orders since the hub was started, and how it stands with them."""
    hub: Hub = request.app.state.hub
    return json_of(TaskList(data=[shown(task.state) for task in hub.tasks.all]))


@get(
    ["/v1/admin/tasks/{task_id:str}", "/api/admin/tasks/{task_id:str}"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_json(TaskState)}, parameters=[TASK_ID]),
    responses=errors(403, 404),
    summary="Get a task",
)
async def get_task(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """How it stands with an order."""
    hub: Hub = request.app.state.hub
    return json_of(shown(hub.tasks.get(task_id).state))


@delete(
    ["/v1/admin/tasks/{task_id:str}", "/api/admin/tasks/{task_id:str}"],
    opt=ADMIN,
    status_code=200,
    operation_class=operation(
        answers={
            200: answer(
                as_json(TaskState),
                as_json(TaskDeleted),
                description="The task, cancelled; or, where it had ended, that it is forgotten.",
            )
        },
        parameters=[TASK_ID],
    ),
    responses=errors(403, 404),
    summary="Cancel or forget a task",
)
async def delete_task(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """Ends the work of one that is in progress; what a pull has fetched stays, and the next one goes on from there.
    Forgets one that has ended."""
    hub: Hub = request.app.state.hub
    task = hub.tasks.get(task_id)
    if task.ended:
        hub.tasks.forget(task_id)
        return json_of(TaskDeleted(id=task_id))
    await task.cancel()
    return json_of(shown(task.state))


@get(
    ["/v1/admin/tasks/{task_id:str}/events", "/api/admin/tasks/{task_id:str}/events"],
    opt=ADMIN,
    operation_class=operation(answers={200: as_events(TaskEvent)}, parameters=[TASK_ID]),
    responses=errors(403, 404),
    summary="Follow a task",
)
async def follow_task(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """The task as it is now, its progress as it comes, and its end. Leaving changes nothing."""
    hub: Hub = request.app.state.hub
    return EventStream(task_events(hub.tasks.get(task_id)), ExitStack())


async def task_events(task: Task) -> AsyncGenerator[bytes, None]:
    """A task's events, from its state now to its end."""

    def event() -> bytes:
        kind = _TYPES[task.state.status]
        return encode_event(kind, TaskEvent(type=kind, task=shown(task.state)))

    while True:
        changed, ended = task.changed, task.ended
        yield event()
        if ended:
            return
        while not await _set_within(changed, KEEP_ALIVE):
            yield b": keep-alive\n\n"


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def json_of(body: Struct, status: int = 200) -> Response[bytes]:
    """An answer."""
    return Response(msgspec.json.encode(body), media_type="application/json", status_code=status)


handlers = [list_tasks, get_task, delete_task, follow_task]
