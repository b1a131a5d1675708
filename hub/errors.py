"""Every error that a user can meet, with its HTTP status and its public words.

HubError
├── InvalidRequest          400  invalid_request_error   the request itself is wrong; `param` names the field
│   ├── ModelRefused        400  model_refused            files that no model may have here: code, pickles, paths …
│   ├── UnsupportedMedia    415  unsupported_media_type
│   └── BodyTooLarge        413  request_too_large
├── InvalidApiKey           401  invalid_api_key
├── BudgetExceeded          402  budget_exceeded      what the key may spend in this month is spent, or would be
├── RemoteNotAllowed        403  remote_not_allowed   no target is left that this key, or this id, may use
├── ModelForbidden          403  model_forbidden      no target is left that is meant for this key
├── HostNotAllowed          403  host_not_allowed
├── FileForbidden           403  invalid_signature
├── ModelNotFound           404  model_not_found
├── NotFound                404  not_found
├── ModelExists         409  model_exists             another model has this id already
├── IdempotencyKeyReuse     409  idempotency_key_reuse    the key came before, with another body
├── JobCancelled            409  job_cancelled            somebody cancelled the job of this request
├── FileExpired             410  file_expired
├── RangeNotSatisfiable     416  range_not_satisfiable
├── QueueFull               429  queue_full               with Retry-After
├── GenerationFailed        500  generation_failed        the pipeline itself failed
├── OutOfMemory             503  out_of_memory        it does not fit into the memory there is; the words say what would
├── ProviderError           what a remote provider did; `may_have_billed` says whether another try can cost twice
│   ├── ProviderFailed      502  provider_failed          an error of its own, or an answer that is none
│   │   └── NothingMade     502  provider_failed          it works, but made nothing of this request, or as it was asked
│   ├── ProviderTimeout     504  provider_timeout
│   ├── ProviderBusy        503  provider_busy            with Retry-After
│   ├── ProviderKeyRefused  503  provider_key_refused     it does not take the owner's key, or that has no credit left
│   └── ProviderUnavailable 503  provider_unavailable     it failed again and again and is left alone for now
├── EngineUnavailable       503  engine_unavailable       the worker died or cannot start; with Retry-After
├── ModelUnusable           503  model_unusable           its files are damaged or refused; trying again cannot help
└── StorageFull             507  storage_full

ConfigurationError is for the owner at start-up, never for a client: it names file and field.

The words of an error are public: they never hold a path, an address, a key or a traceback.
"""

from __future__ import annotations

from typing import Self

from msgspec import Struct


class ErrorBody(Struct, frozen=True, kw_only=True):
    """OpenAI's error object, in answers, events and kept jobs; `param` is null where no parameter is at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ConfigurationError(Exception):
    """The owner's settings or manifests are wrong; the message says where and what to do."""


class HubError(Exception):
    """Base of all errors that are answered to a client, in OpenAI's envelope."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    final: bool = False
    """Whether the same request would fail again: OpenAI's clients, which repeat a 409 or a 5xx, are told not to."""
    may_have_billed: bool = False
    """Whether a remote provider may charge for the request all the same; see ProviderError."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        """`retry_after` is in seconds and becomes the Retry-After header."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after = retry_after
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if self.final:
            self.for_good()

    def for_good(self) -> Self:
        """The same, where it is certain that the same request would fail again although its kind does not say so."""
        self.final = True
        self.headers["x-should-retry"] = "false"
        return self

    @property
    def body(self) -> ErrorBody:
        """What a client is told of it."""
        return ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)


class InvalidRequest(HubError):
    """The request is wrong in a way that its sender can mend."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ModelRefused(InvalidRequest):
    """Files that no model may have here, whoever brings them."""

    code = "model_refused"
    final = True


class UnsupportedMedia(InvalidRequest):
    """The body is not JSON by its content type."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLarge(InvalidRequest):
    """The body is larger than `max_body_mb`."""

    status = 413
    code = "request_too_large"


class InvalidApiKey(HubError):
    """No key, or a key that the hub does not know."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class BudgetExceeded(HubError):
    """What the caller's key may spend in this month is spent, or would be by this request."""

    status = 402
    type = "insufficient_quota"
    code = "budget_exceeded"
    final = True


class RemoteNotAllowed(HubError):
    """No target is left that may serve this: those that could lie on other machines, and the owner has not allowed
    this key, or this id, to leave this one."""

    status = 403
    type = "permission_error"
    code = "remote_not_allowed"
    final = True


class ModelForbidden(HubError):
    """No target is left that is meant for this key."""

    status = 403
    type = "permission_error"
    code = "model_forbidden"
    final = True


class HostNotAllowed(HubError):
    """An open hub was addressed by a foreign name or from a foreign page (DNS rebinding, CSRF)."""

    status = 403
    type = "permission_error"
    code = "host_not_allowed"


class AdminRequired(HubError):
    """What only the hub's owner may do."""

    status = 403
    type = "permission_error"
    code = "admin_required"


class RepoForbidden(HubError):
    """Hugging Face gives this repository to those alone who have a token or have accepted its terms."""

    status = 403
    type = "permission_error"
    code = "repo_forbidden"


class FileForbidden(HubError):
    """The link to a generated file was altered or made up."""

    status = 403
    type = "permission_error"
    code = "invalid_signature"


class ModelNotFound(HubError):
    """No model or alias has this id."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class RepoNotFound(HubError):
    """Hugging Face has no such repository, revision or file."""

    status = 404
    type = "invalid_request_error"
    code = "repo_not_found"


class NotFound(HubError):
    """Nothing is served at this path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelExists(HubError):
    """Another model has the id already."""

    status = 409
    type = "invalid_request_error"
    code = "model_exists"
    final = True


class IdempotencyKeyReuse(HubError):
    """The same Idempotency-Key came before, with another body; trying again cannot help."""

    status = 409
    type = "invalid_request_error"
    code = "idempotency_key_reuse"
    final = True


class JobCancelled(HubError):
    """The job that a request waited for was cancelled by its owner; trying again would undo that."""

    status = 409
    type = "invalid_request_error"
    code = "job_cancelled"
    final = True

    def __init__(self) -> None:
        super().__init__("This job was cancelled.")


class FileExpired(HubError):
    """The link was right and its time is over."""

    status = 410
    type = "invalid_request_error"
    code = "file_expired"


class RangeNotSatisfiable(HubError):
    """The Range header asks for bytes beyond the file's end."""

    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        """`size`: the file's bytes."""
        super().__init__(f"The file has {size} bytes.")
        self.headers = {"Content-Range": f"bytes */{size}"}


class QueueFull(HubError):
    """More requests wait than `max_queue` allows."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class GenerationFailed(HubError):
    """The pipeline failed on this request; others go on."""

    status = 500
    code = "generation_failed"


class EngineUnavailable(HubError):
    """The engine process died during the request, or cannot be started."""

    status = 503
    code = "engine_unavailable"


class PullFailed(HubError):
    """Hugging Face failed, or the way there. What has come is kept, and the next pull goes on from there."""

    status = 502
    code = "pull_failed"


class Offline(HubError):
    """What was asked for would leave the machine, and its owner has set `offline`."""

    status = 503
    code = "offline"
    final = True


class ModelLoading(HubError):
    """The model's weights are on their way; the words say how far."""

    status = 503
    code = "model_loading"


class OutOfMemory(HubError):
    """The request does not fit into the memory that there is. The same one again would not fit either."""

    status = 503
    code = "out_of_memory"
    final = True


class ModelUnusable(HubError):
    """The model's files are damaged, or it cannot run here: its owner has to act, and trying again cannot help."""

    status = 503
    code = "model_unusable"
    final = True


class ProviderError(HubError):
    """A remote provider failed. Its own words are never repeated: they may hold anything.

    `may_have_billed`: whether it may have made the pictures, and charge for them, although they did not come. Then
    nothing is sent again, unless the owner allows it.
    """

    status = 502
    code = "provider_failed"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        may_have_billed: bool = False,
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.may_have_billed = may_have_billed
        if may_have_billed:  # OpenAI's clients repeat a 5xx by themselves
            self.headers["x-should-retry"] = "false"


class ProviderFailed(ProviderError):
    """The provider answered with an error of its own, with something that is no answer, or not to the end."""


class NothingMade(ProviderFailed):
    """The provider is well and has made nothing: of this request, or by how this hub is set up to ask it. That says
    nothing about the requests of others."""


class ProviderTimeout(ProviderError):
    """The provider did not answer in time."""

    status = 504
    code = "provider_timeout"


class ProviderBusy(ProviderError):
    """The provider has no room for this request now, or limits how many it takes."""

    status = 503
    code = "provider_busy"


class ProviderKeyRefused(ProviderError):
    """The provider does not take the owner's key, or there is no credit left on it; only the owner can mend that."""

    status = 503
    code = "provider_key_refused"
    final = True


class NoCredit(ProviderKeyRefused):
    """The provider knows the key, and there is no credit left on it."""


class ProviderUnavailable(ProviderError):
    """The provider was not asked: there is no key for it, or it failed again and again and is left alone for now."""

    status = 503
    code = "provider_unavailable"


class StorageFull(HubError):
    """The disk has no room for the generated file."""

    status = 507
    code = "storage_full"


def error_from(body: ErrorBody, status: int) -> HubError:
    """An error that another process has told of, as this one raises it."""
    error = HubError(body.message, param=body.param, code=body.code)
    error.status, error.type = status, body.type
    error.final = any(kind.final for kind in _kinds(HubError) if kind.code == body.code)
    if error.final:
        error.headers["x-should-retry"] = "false"
    return error


def _kinds(kind: type[HubError]) -> list[type[HubError]]:
    return [kind, *(inner for each in kind.__subclasses__() for inner in _kinds(each))]
