"""GET /v1/usage, also under /api: what was used, by key, model and day, and what is left of the caller's budget."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Literal

from litestar import Response, get
from msgspec import Struct

from hub.accounts import MICRO, Column, Span
from hub.api.described import answer, as_json, as_text, errors, operation, query
from hub.api.refusals import unknown_parameter
from hub.api.tasks import json_of
from hub.api.wire import AnyRequest, owner_of, query_value
from hub.errors import AdminRequired, InvalidRequest
from hub.hub import Hub
from hub.report import (
    BY,
    BY_PATTERN,
    UsageBucket,
    as_csv,
    bucket_of,
    columns_of,
    day_of,
    days_of,
    left_of,
    month_of,
    span_of,
)
from hub.settings import KEY_NAME

MOST = 10_000
"""Buckets in an answer."""
PARAMETERS = ("by", "month", "from", "to", "format", "key")
MONTH = "2[0-9]{3}-(0[1-9]|1[0-2])"
FORMATS = ("json", "csv")


class UsageBudget(Struct, kw_only=True):
    """What a key may spend in this calendar month (UTC), and has spent, with what is reserved for requests that run.
    `limit_usd` and `left_usd` are null where nothing limits it. `month` is `YYYY-MM`; `ends_at` in Unix seconds."""

    object: Literal["usage.budget"] = "usage.budget"
    key: str
    month: str
    ends_at: int
    limit_usd: float | None
    spent_usd: float
    left_usd: float | None


class UsageList(Struct, kw_only=True):
    """Buckets in the order of what they are summed up by, and the caller's budget; that of `key` where it is given."""

    object: Literal["list"] = "list"
    data: list[UsageBucket]
    budget: UsageBudget


@get(
    ["/v1/usage", "/api/usage"],
    operation_class=operation(
        answers={200: answer(as_json(UsageList), as_text("text/csv"))},
        parameters=[
            query(
                "by",
                "Of key, model, target and day, those by which uses are summed up.",
                pattern=BY_PATTERN,
                default=",".join(BY),
                examples=["key,model,day"],
            ),
            query(
                "month",
                "A calendar month (UTC), instead of days.",
                pattern=f"^{MONTH}$",
                examples=["2026-11"],
            ),
            query("from", "The first day (UTC); without it, the first one of the month of the last.", format="date"),
            query("to", "The last day (UTC), included; without it, the last one of this month.", format="date"),
            query("format", "`csv` has the buckets alone.", enum=list(FORMATS), default="json"),
            query(
                "key",
                "The uses of this key alone. Others than the caller's are for the owner's keys.",
                pattern=f"^{KEY_NAME.pattern}$",
            ),
        ],
    ),
    responses=errors(400),
    summary="Tell what was used and what it cost",
)
async def get_usage(request: AnyRequest) -> Response[bytes]:
    """A key sees its own use; the owner's keys (setting admin_keys), and who calls a hub without keys, see all."""
    hub: Hub = request.app.state.hub
    for name in request.query_params:
        if name not in PARAMETERS:
            raise unknown_parameter(name)
    owner, shown = _whose(request, hub)
    span = _span(request, hub)
    by, kind = _columns(request), query_value(request, "format")
    if kind not in (None, *FORMATS):
        raise InvalidRequest("Invalid 'format': it must be one of json, csv.", param="format")
    found = await hub.ledger.used(by, span, shown, limit=MOST + 1)
    if len(found) > MOST:
        words = f"Invalid 'by': there are more than {MOST:,} such buckets; ask for fewer days, or sum up by less."
        raise InvalidRequest(words, param="by")
    buckets = [bucket_of(each) for each in found]
    if kind == "csv":
        return Response(as_csv(buckets, by).encode(), media_type="text/csv")
    return json_of(UsageList(data=buckets, budget=await _budget(hub, owner if shown is None else shown)))


def _whose(request: AnyRequest, hub: Hub) -> tuple[str, str | None]:
    """The caller's key ("" on an open hub), and the key whose use is shown, None for all."""
    caller, wanted = owner_of(request), query_value(request, "key")
    if wanted is not None and not KEY_NAME.fullmatch(wanted):
        raise InvalidRequest("Invalid 'key': it must be the name of a key.", param="key")
    if caller is None or caller in hub.settings.admin_keys:
        return caller or "", wanted
    if wanted not in (None, caller):
        words = "Only the owner's keys see the use of others; the setting admin_keys names them."
        raise AdminRequired(words, param="key")
    return caller, caller


def _columns(request: AnyRequest) -> Sequence[Column]:
    text = query_value(request, "by")
    try:
        return BY if text is None else columns_of(text)
    except ValueError:
        words = "Invalid 'by': it must be some of key, model, target and day, with commas."
        raise InvalidRequest(words, param="by") from None


def _span(request: AnyRequest, hub: Hub) -> Span:
    if (month := query_value(request, "month")) is not None:
        if other := next((name for name in ("from", "to") if query_value(request, name) is not None), None):
            raise InvalidRequest(f"Invalid '{other}': it does not go with 'month'.", param=other)
        try:
            return month_of(day_of(f"{month}-01"))
        except ValueError:
            raise InvalidRequest("Invalid 'month': it must be a month, such as 2026-11.", param="month") from None
    given: dict[str, dt.date] = {}
    for name in ("from", "to"):
        text = query_value(request, name)
        try:
            given |= {name: day_of(text)} if text is not None else {}
        except ValueError:
            words = f"Invalid '{name}': it must be a day, such as 2026-11-27."
            raise InvalidRequest(words, param=name) from None
    last = given.get("to", days_of(hub.ledger.month)[1])
    first = given.get("from", last.replace(day=1))
    if "to" in given and first > last:
        raise InvalidRequest("Invalid 'to': it is before 'from'.", param="to")
    return span_of(first, last)


async def _budget(hub: Hub, owner: str) -> UsageBudget:
    month, spent = hub.ledger.month, await hub.ledger.spent(owner)
    budget = hub.settings.budget_of(owner)
    return UsageBudget(
        key=owner,
        month=f"{days_of(month)[0]:%Y-%m}",
        ends_at=int(month.until),
        limit_usd=budget,
        spent_usd=spent,
        left_usd=left_of(budget, round(spent * MICRO)),
    )
