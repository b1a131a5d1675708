"""Generations, edits and variations of images: OpenAI's paths under /v1, and the same under /api."""

from __future__ import annotations

from litestar import Response, post

from hub.api.answers import ImagesResponse
from hub.api.described import (
    CACHE_CONTROL,
    IDEMPOTENCY_KEY,
    OF_PICTURES,
    PREFER,
    Upload,
    answer,
    as_events,
    as_json,
    as_multipart,
    errors,
    operation,
    query,
)
from hub.api.events import CompletedEvent, PartialImageEvent
from hub.api.forms import read_form
from hub.api.job_body import ImageJob
from hub.api.modes import respond
from hub.api.params import (
    MAX_IMAGES,
    CreateImageRequest,
    EditImageForm,
    EditImageRequest,
    VariationForm,
    Wanted,
    of_edit,
    of_generation,
)
from hub.api.wire import AnyRequest, ErrorResponse, media_type_of, read_json
from hub.errors import InvalidRequest, UnsupportedMedia

FORM = "multipart/form-data"
MASK = Upload(required=False, description="Which part of the first image may change; docs/masks.md.")

ANSWERS = {
    200: answer(as_json(ImagesResponse), as_events(PartialImageEvent, CompletedEvent, ErrorResponse)),
    202: answer(as_json(ImageJob), headers={"Location": "Where the job is."}),
}
PARAMETERS = [
    IDEMPOTENCY_KEY,
    PREFER,
    CACHE_CONTROL,
    query("async", "Answer at once with a job.", type="boolean", default=False),
]
ERRORS = errors(402, 404, 409, 502, 504, 507)


@post(
    ["/api/images/generations", "/v1/images/generations"],
    status_code=200,
    operation_class=operation(as_json(CreateImageRequest), answers=ANSWERS, parameters=PARAMETERS, headers=OF_PICTURES),
    responses=ERRORS,
    summary="Create images, or edit one",
)
async def generate(request: AnyRequest) -> Response[bytes]:
    """Makes pictures from a prompt, or from a prompt and source pictures."""
    return await respond(request, of_generation(await read_json(request, CreateImageRequest)))


@post(
    ["/v1/images/edits", "/api/images/edits"],
    status_code=200,
    operation_class=operation(
        as_multipart(EditImageForm, image=Upload(most=MAX_IMAGES), mask=MASK),
        as_json(EditImageRequest),
        answers=ANSWERS,
        parameters=PARAMETERS,
        headers=OF_PICTURES,
    ),
    responses=ERRORS,
    summary="Edit images",
)
async def edit(request: AnyRequest) -> Response[bytes]:
    """Makes pictures from a prompt and source pictures, sent as a form or as JSON; a mask says which part may
    change, and the rest stays as it is."""
    if media_type_of(request) != FORM:
        if media_type_of(request) != "application/json":
            raise UnsupportedMedia("Send a form (multipart/form-data), or JSON with 'images'.")
        return await respond(request, of_edit(await read_json(request, EditImageRequest)))
    form, files = await read_form(request, EditImageForm, {"image": MAX_IMAGES, "mask": 1})
    images, masks = files["image"], files["mask"]
    if not images:
        raise _missing_image()
    mask = masks[0] if masks else None
    wanted = Wanted(kind="image_edit", params=form, prompt=form.prompt, images=tuple(images), mask=mask)
    return await respond(request, wanted)


@post(
    ["/v1/images/variations", "/api/images/variations"],
    status_code=200,
    operation_class=operation(
        as_multipart(VariationForm, image=Upload()), answers=ANSWERS, parameters=PARAMETERS, headers=OF_PICTURES
    ),
    responses=ERRORS,
    summary="Vary an image",
)
async def vary(request: AnyRequest) -> Response[bytes]:
    """Makes pictures like the source picture, without a prompt."""
    if media_type_of(request) != FORM:
        raise UnsupportedMedia("Send a form (multipart/form-data) with the file 'image'.")
    form, files = await read_form(request, VariationForm, {"image": 1})
    if not files["image"]:
        raise _missing_image()
    return await respond(request, Wanted(kind="image_variation", params=form, prompt="", images=tuple(files["image"])))


def _missing_image() -> InvalidRequest:
    words = "Missing required parameter: 'image'."
    return InvalidRequest(words, param="image", code="missing_required_parameter")
