"""OpenAI's image wire, as its own API and all that speak it have it: bodies, forms, answers, events and errors.

Shapes as in the official SDK, `openai.types`: ImagesResponse, ImageGenStreamEvent, ImageEditStreamEvent,
ImageGenerateParams and ImageEditParams. What a picture needs is read strictly; all else (usage, quality …) counts only
where it is what it should be, since a server that speaks the wire with an accent has made the pictures nevertheless.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

import msgspec
from msgspec import Struct

from hub.errors import HubError, InvalidRequest, NothingMade, ProviderFailed, ProviderKeyRefused
from hub.remote.adapter import (
    Adapter,
    Answer,
    Form,
    Link,
    Made,
    Partial,
    Picture,
    blocked,
    no_credit,
)
from hub.remote.reading import count, event_of, listed, picture_in, picture_of, seed, text
from hub.remote.wish import OPTIONAL, Notice, Wish
from hub.types import Background, Effort, Usage

BLOCKED = ("moderation_blocked", "content_policy_violation", "content_filter")
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "budget_exceeded")
NO_KEY = ("no_db_connection",)
"""What LiteLLM's proxy answers to a key that it does not know, with status 400, where it has no database of keys."""
PARAMS = ("prompt", "n", "image", "mask", *OPTIONAL)
"""Parameters at fault that are named to the client: they are the hub's own, too."""
STATUSES = {
    "invalid_request_error": 400,
    "image_generation_user_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
}
"""What an error in a stream would have had as a status, by its type or code."""
PICTURES = ("partial_image", "completed")
"""How the kinds of events end that have a picture."""
MAX_PICTURES = 10

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BASE64 = re.compile(rb'"b64_json"\s*:\s*"')


class Item(Struct):
    """One picture of an answer."""

    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    url: Any = None
    revised_prompt: Any = None


class Images(Struct):
    """ImagesResponse. `seed` and `warnings` are what the hub adds to it."""

    data: list[Item]
    usage: Any = None
    background: Any = None
    quality: Any = None
    seed: Any = None
    warnings: Any = None


class Event(Struct):
    """A partial or completed picture; an error; or, from those who stream their own way, all that an answer has."""

    type: Any = None
    error: Any = None
    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    url: Any = None
    data: list[Item] | None = None
    partial_image_index: Any = None
    image_index: Any = None
    usage: Any = None
    background: Any = None
    quality: Any = None
    seed: Any = None
    warnings: Any = None


def _picture(item: Item | Event, base: str, cut: dict[bytes, memoryview] | None = None) -> Picture | None:
    """In base64, or behind a link, which may be relative to the server's `base` URL; None where there is neither.
    `cut`: the base64 that was cut out, by the numbers in its place; each is used once."""
    found = picture_in(cut.pop(bytes(item.b64_json), None)) if cut else None
    found = found or picture_of(item.b64_json, item.url)
    if isinstance(found, Link) and not _ABSOLUTE.match(found.url):
        with contextlib.suppress(ValueError):  # whoever fetches it tells what is wrong with it
            return Link(urljoin(f"{base}/", found.url))
    return found


def usage_of(told: Any) -> Usage | None:
    """As the hub counts them; None where nothing was counted."""
    if not isinstance(told, dict):
        return None
    details = told.get("input_tokens_details")
    if not isinstance(details, dict):
        details = {"text_tokens": told.get("input_tokens")}
    usage = Usage(
        text_tokens=count(details.get("text_tokens")),
        image_tokens=count(details.get("image_tokens")),
        output_tokens=count(told.get("output_tokens")),
    )
    return usage if usage.text_tokens or usage.image_tokens or usage.output_tokens else None


def effort_of(told: Any) -> Effort | None:
    """A quality that the hub has, too; what is beyond high is high."""
    if told in ("xhigh", "max"):
        return "high"
    return told if told in ("low", "medium", "high") else None


def background_of(told: Any) -> Background | None:
    """A background that is known."""
    return told if told in ("opaque", "transparent") else None


def body_of(wish: Wish, n: int, further: Mapping[str, object]) -> dict[str, object]:
    """What generations and edits have in common, and further fields; what is None is left out."""
    request = wish.request
    lossy, streams = wish.output_format != "png", request.partial_images > 0
    return wish.with_options(
        {
            "model": wish.model,
            "prompt": wish.prompt,
            "n": n,
            "size": str(wish.size) if wish.size else None,
            "quality": request.quality if request.quality not in (None, "auto") else wish.effort,
            "output_format": wish.output_format if lossy else None,
            "output_compression": request.output_compression if lossy else None,
            "background": request.background if request.background != "auto" else None,
            "stream": True if streams else None,
            "partial_images": request.partial_images if streams else None,
            **further,
        }
    )


def form_of(wish: Wish, body: dict[str, object]) -> Form:
    """An edit's form: `image[]` for several pictures, as OpenAI's SDK has it."""
    field = "image" if len(wish.images) == 1 else "image[]"
    files = [(field, each.file_name, each.data, each.media_type) for each in wish.images]
    if wish.mask is not None:
        files.append(("mask", "mask.png", wish.mask.transparent_changes, "image/png"))
    return Form.of(body, files)


def read_made(answer: Answer, base: str = "") -> Made:
    """The pictures of an answer that is an ImagesResponse. `base`: the server's base URL.

    Base64 is cut out before the rest is parsed, and a number put in its place: a parser looks at each of its bytes, and
    then copies them."""
    body, start = answer.body, 0
    rest: list[bytes | bytearray] = []
    cut: dict[bytes, memoryview] = {}
    while match := _BASE64.search(body, start):
        begin, end = match.end(), body.find(b'"', match.end())
        if end < 0 or body.find(b"\\", begin, end) >= 0:  # no end; or escapes, which are rare, and the parser's
            break
        if end > begin:
            number = str(len(cut)).encode()
            rest += [body[start : begin - 1], number]
            cut[number] = memoryview(body)[begin:end]
        else:
            rest.append(body[start : end + 1])
        start = end + 1
    images = msgspec.structs.replace(answer, body=b"".join([*rest, body[start:]])).read(Images)
    return made_of(images, base, cut)


def made_of(images: Images, base: str = "", cut: dict[bytes, memoryview] | None = None) -> Made:
    """The pictures of an ImagesResponse. `cut`: see `_picture`."""
    pictures = [(item, _picture(item, base, cut)) for item in images.data]
    prompts = [text(item.revised_prompt) for item, picture in pictures if picture is not None]
    return Made(
        pictures=[picture for _, picture in pictures if picture is not None],
        usage=usage_of(images.usage),
        seed=seed(images.seed),
        revised_prompts=prompts if any(prompts) else [],
        background=background_of(images.background),
        quality=effort_of(images.quality),
        notices=notices_of(images.warnings),
    )


def notices_of(told: Any) -> list[Notice]:
    """Warnings of another hub, each of which begins with a parameter's name: which parameters they are about, and
    nothing of their words."""
    names = [text(each).partition(":")[0] for each in listed(told)]
    words = "it was not done as asked, says the server that has drawn"
    return [Notice(name, words) for name in dict.fromkeys(names) if name in PARAMS]


def made_of_event(adapter: Adapter, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
    """A preview or a finished picture, or None for what is of no interest; raises what an error tells. Its kind is the
    event's name or its own `type`, since some servers name no events."""
    try:
        found = event_of(adapter.title, data, Event)
    except ProviderFailed:
        if name.rpartition(".")[2] in PICTURES:
            raise
        return None
    if name == "error" or found.type == "error" or found.error is not None:
        raise _failure(adapter, data, found.error)
    base = wish.manifest.remote.base_url or ""
    if found.data is not None:
        return made_of(Images(found.data, found.usage, found.background, found.quality, found.seed), base)
    kind = next((kind for kind in PICTURES for told in (name, found.type) if text(told).endswith(kind)), None)
    if kind is None:
        return None
    picture = _picture(found, base)
    if picture is None:
        raise ProviderFailed(f"{adapter.title} sent an event of a picture without one.", may_have_billed=True)
    if kind == "partial_image":
        return Partial(_index(found.image_index), _index(found.partial_image_index), picture)
    return Made(
        [picture],
        usage=usage_of(found.usage),
        seed=seed(found.seed),
        background=background_of(found.background),
        quality=effort_of(found.quality),
        notices=notices_of(found.warnings),
    )


def _index(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MAX_PICTURES else 0


def _failure(adapter: Adapter, data: bytes, error: Any) -> HubError:
    """An error in a stream, which came after a good status: as the status that it would have had."""
    told = error if isinstance(error, dict) else {}
    code = text(told.get("code")) or str(told.get("code"))
    status = int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 0
    status = status or STATUSES.get(code) or STATUSES.get(text(told.get("type"))) or 0
    answer = Answer(status, {}, data)
    found = openai_refusal(adapter, answer)
    if found is None and status:
        found = adapter.refusal(answer)
    return found or ProviderFailed(f"{adapter.title} failed while it drew.", may_have_billed=True)


def openai_refusal(adapter: Adapter, answer: Answer) -> HubError | None:
    """What OpenAI's envelope says more than the status: its code, and the parameter at fault where that is one of the
    hub's own."""
    code, kind = text(answer.peek("error", "code")), text(answer.peek("error", "type"))
    if code in BLOCKED or kind in BLOCKED:
        return blocked(adapter.title)
    if code in NO_CREDIT or kind in NO_CREDIT:
        return no_credit(adapter.title)
    if kind in NO_KEY:
        return ProviderKeyRefused(f"{adapter.title} does not take this hub's key. Its owner has to act.")
    if answer.status in (400, 422) and (param := _param(answer)) is not None:
        words = f"{adapter.title} does not take this '{param}'."
        return InvalidRequest(words, param=param, code="provider_refused")
    if answer.status in (429, 503) and answer.headers.get("x-should-retry") == "false":
        return NothingMade(f"{adapter.title} cannot do this, and says that asking again would not help.")
    return None


def _param(answer: Answer) -> str | None:
    """The parameter at fault, by OpenAI's envelope, or as FastAPI tells it: the end of a path in `detail`."""
    param = answer.peek("error", "param")
    detail = answer.peek("detail")
    if param is None and isinstance(detail, list) and detail and isinstance(detail[0], dict):
        path = detail[0].get("loc")
        param = path[-1] if isinstance(path, list) and path else None
    param = text(param).partition("[")[0]
    return param if param in PARAMS else None
