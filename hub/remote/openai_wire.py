"""OpenAI's image wire, as its own API and all that speak it have it: bodies, forms, answers, events and errors.

Shapes as in the official SDK, `openai.types`: ImagesResponse, ImageGenStreamEvent, ImageEditStreamEvent,
ImageGenerateParams and ImageEditParams.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from hub.errors import HubError, InvalidRequest, ProviderBusy, ProviderFailed, ProviderKeyRefused
from hub.remote.adapter import Adapter, Answer, Base64, Form, Link, Made, Partial, Picture, blocked
from hub.remote.wish import Wish
from hub.types import Background, Effort, Usage

BLOCKED = {"moderation_blocked", "content_policy_violation"}
NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "budget_exceeded"}


class Item(Struct):
    """One picture of an answer."""

    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    url: str | None = None
    revised_prompt: str | None = None


class TokenDetails(Struct):
    """What the input's tokens were spent on."""

    text_tokens: int = 0
    image_tokens: int = 0


class Tokens(Struct):
    """OpenAI's usage of images."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: TokenDetails | None = None


class Images(Struct):
    """ImagesResponse."""

    data: list[Item]
    usage: Tokens | None = None
    background: str | None = None
    quality: str | None = None
    seed: int | None = None


class Event(Struct):
    """A partial or completed picture."""

    b64_json: msgspec.Raw
    partial_image_index: int = 0
    image_index: int = 0
    usage: Tokens | None = None
    background: str | None = None
    quality: str | None = None


def raw_base64(value: msgspec.Raw) -> bytes | None:
    """The text of a JSON string of base64, as it stands there; None for null. Escapes are rare, and then undone."""
    text = bytes(value)
    if text == b"null":
        return None
    if not text.startswith(b'"'):
        raise ProviderFailed("The provider answered with something else than pictures.", may_have_billed=True)
    return msgspec.json.decode(text, type=str).encode() if b"\\" in text else text[1:-1]


def usage_of(tokens: Tokens | None) -> Usage | None:
    """As the hub counts them."""
    if tokens is None:
        return None
    details = tokens.input_tokens_details or TokenDetails(text_tokens=tokens.input_tokens)
    return Usage(text_tokens=details.text_tokens, image_tokens=details.image_tokens, output_tokens=tokens.output_tokens)


def effort_of(text: str | None) -> Effort | None:
    """A quality that the hub has, too."""
    return text if text in ("low", "medium", "high") else None  # type: ignore[return-value]


def background_of(text: str | None) -> Background | None:
    """A background that is known."""
    return text if text in ("opaque", "transparent") else None  # type: ignore[return-value]


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


def made_of(images: Images) -> Made:
    """The pictures of an ImagesResponse, in base64 or behind links."""
    pictures: list[Picture] = []
    for item in images.data:
        text = raw_base64(item.b64_json)
        if text is not None:
            pictures.append(Base64(text))
        elif item.url is not None:
            pictures.append(Link(item.url))
    return Made(
        pictures=pictures,
        usage=usage_of(images.usage),
        seed=images.seed,
        revised_prompts=[item.revised_prompt for item in images.data if item.revised_prompt],
        background=background_of(images.background),
        quality=effort_of(images.quality),
    )


def made_of_event(adapter: Adapter, name: str, data: bytes) -> Partial | Made | None:
    """A preview or a finished picture; raises what an `error` event tells."""
    if name == "error" or data.startswith(b'{"error"'):
        answer = Answer(400, {}, data)
        raise openai_refusal(adapter, answer) or ProviderFailed(f"{adapter.title} failed.", may_have_billed=True)
    kind = name.rpartition(".")[2]
    if kind not in ("partial_image", "completed"):
        return None
    try:
        found = msgspec.json.decode(data, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = f"{adapter.title} sent something else than pictures."
        raise ProviderFailed(words, may_have_billed=True) from None
    picture = Base64(raw_base64(found.b64_json) or b"")
    if kind == "partial_image":
        return Partial(found.image_index, found.partial_image_index, picture)
    return Made(
        [picture],
        usage=usage_of(found.usage),
        background=background_of(found.background),
        quality=effort_of(found.quality),
    )


def openai_refusal(adapter: Adapter, answer: Answer) -> HubError | None:
    """What OpenAI's envelope says more than the status: its code, and the parameter at fault where that is one of the
    hub's own."""
    code, param = answer.peek("error", "code"), answer.peek("error", "param")
    if code in BLOCKED:
        return blocked(adapter.title)
    if code in NO_CREDIT:
        return ProviderKeyRefused(f"There is no credit left with {adapter.title}. This hub's owner has to act.")
    if code == "rate_limit_exceeded" and answer.status == 400:  # in a stream, after a good status
        return ProviderBusy(f"{adapter.title} takes no request just now.")
    if answer.status in (400, 422) and param in ("prompt", "n", "size", "quality", "background", "image", "mask"):
        words = f"{adapter.title} does not take this '{param}'."
        return InvalidRequest(words, param=str(param), code="provider_refused")
    return None
