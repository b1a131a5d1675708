"""OpenAI's image API: generations and edits, whole and streamed. All current models are gpt-image ones: they answer in
base64, and take no `response_format`."""

from __future__ import annotations

from hub.errors import HubError
from hub.remote.adapter import Adapter, Answer, Call, Made, Partial, Pending
from hub.remote.openai_wire import Images, body_of, form_of, made_of, made_of_event, openai_refusal
from hub.remote.wish import Wish


class OpenAI(Adapter):
    """api.openai.com."""

    name = "openai"
    title = "OpenAI"
    base_url = "https://api.openai.com/v1"
    key_variable = "OPENAI_API_KEY"
    honours = frozenset(
        {
            "size",
            "quality",
            "output_format",
            "output_compression",
            "background",
            "moderation",
            "input_fidelity",
            "partial_images",
        }
    )
    documentation = "https://platform.openai.com/docs/api-reference/images"

    def call(self, wish: Wish, n: int, first: int) -> Call:
        """Generations as JSON, edits as a form, which has no `moderation`."""
        del first
        request = wish.request
        streams = request.partial_images > 0
        told = {"user": request.user, "safety_identifier": request.safety_identifier}
        if not wish.images:
            body = body_of(wish, n, {**told, "moderation": request.moderation})
            return Call("/images/generations", json=body, stream=streams)
        body = body_of(wish, n, {**told, "input_fidelity": request.input_fidelity})
        return Call("/images/edits", form=form_of(wish, body), stream=streams)

    def read(self, wish: Wish, answer: Answer) -> Made | Pending:
        """ImagesResponse."""
        del wish
        return made_of(answer.read(Images))

    def event(self, wish: Wish, name: str, data: bytes) -> Partial | Made | None:
        """image_generation.* and image_edit.*; an `error` event ends the stream."""
        del wish
        return made_of_event(self, name, data)

    def refusal(self, answer: Answer) -> HubError:
        """`error.code` and `error.param` say more than the status."""
        return openai_refusal(self, answer) or super().refusal(answer)


adapter = OpenAI()
