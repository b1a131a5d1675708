"""Open WebUI's own functions that generate and edit images, from its wheel.

The whole of Open WebUI pulls in gigabytes (torch, chromadb, opencv …), none of which these functions use. Real here:
`routers/images.py`, whose `image_generations` and `image_edits` make the requests and take the answers apart, and what
it needs for that: the check of addresses (`retrieval/web/utils.py`), the HTTP session, JSON, messages and the
defaults in `env.py` and `config.py`. Stood in for: its database (settings come from a dict) and the upload of a
finished picture (it is kept in a list). Every other module of Open WebUI is an empty stand-in.
"""

from __future__ import annotations

import ast
import base64
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

from picture_checks import (
    EDIT_PROMPT,
    KEY,
    PROMPT,
    SMALL,
    URL,
    WRONG_KEY,
    Checks,
    araises,
    expect,
    expect_edit,
    opened,
    source_picture,
)

SOURCE_FOLDER = Path(os.environ["CONFORMANCE_FOLDER"]) / "source"
REAL = {
    "open_webui.constants",
    "open_webui.env",
    "open_webui.retrieval.web.utils",
    "open_webui.routers.images",
    "open_webui.utils.images.comfyui",
    "open_webui.utils.json_codec",
    "open_webui.utils.misc",
    "open_webui.utils.session_pool",
}
PACKAGES = {name.rpartition(".")[0] for name in REAL} | {"open_webui.retrieval", "open_webui.models", "open_webui"}
"""Packages as namespaces: open_webui's own __init__ is its command line."""

settings: dict[str, Any] = {}
uploads: list[tuple[bytes, str]] = []
"""The pictures that Open WebUI would have stored, and their content types."""


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the real modules in the wheel's source, and makes up all others of open_webui."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "open_webui":
            return None
        file = SOURCE_FOLDER.joinpath(*name.split("."))
        if name in REAL:
            return importlib.util.spec_from_file_location(name, file.with_suffix(".py"))
        return importlib.machinery.ModuleSpec(name, self, is_package=name in PACKAGES)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        if spec.name not in PACKAGES:
            module.__getattr__ = lambda name: _made_up(spec.name, name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "open_webui.config":
            module.__dict__.update(_config())
        elif module.__name__ == "open_webui.models.config":
            module.Config = types.SimpleNamespace(get_many=_get_many)  # type: ignore[attr-defined]
        elif module.__name__ == "open_webui.routers.files":
            module.upload_file_handler = _upload  # type: ignore[attr-defined]
            module.get_file_content_by_id = mock.AsyncMock()  # type: ignore[attr-defined]


def _made_up(module: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return mock.MagicMock(name=f"{module}.{name}")


def _config() -> dict[str, Any]:
    """The constants of config.py that the real modules use, from its own lines."""
    wanted = {
        "IMAGE_AUTO_SIZE_MODELS_REGEX_PATTERN",
        "IMAGE_URL_RESPONSE_MODELS_REGEX_PATTERN",
        "ENABLE_OPENAI_IMAGE_EDIT_NORMALIZATION",
        "ENABLE_LOCAL_WEB_FETCH",
        "DEFAULT_WEB_FETCH_FILTER_LIST",
        "WEB_FETCH_MAX_CONTENT_LENGTH",
    }
    tree = ast.parse((SOURCE_FOLDER / "open_webui" / "config.py").read_text())
    lines = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in wanted for t in node.targets)
    ]
    made: dict[str, Any] = {"os": os, "log": mock.MagicMock()}
    exec(compile(ast.Module(lines, []), "config.py", "exec"), made)
    missing = wanted - made.keys()
    if missing:
        raise RuntimeError(f"Open WebUI's config.py has no {missing} any more")
    made["WEB_FETCH_FILTER_LIST"] = made["DEFAULT_WEB_FETCH_FILTER_LIST"]
    made["CACHE_DIR"] = Path(tempfile.mkdtemp(prefix="open-webui-"))
    return made


async def _get_many(*keys: str) -> dict[str, Any]:
    return {key: settings[key] for key in keys if key in settings}


async def _upload(request: Any, file: Any, metadata: Any, process: bool, user: Any) -> Any:
    uploads.append((file.file.read(), file.headers["content-type"]))
    name = file.filename
    return types.SimpleNamespace(id=str(len(uploads)), filename=name, meta={"name": name, "content_type": ""})


sys.meta_path.insert(0, StandIn())
os.environ |= {"DATA_DIR": os.environ["HOME"], "WEBUI_SECRET_KEY": "any"}

from fastapi import HTTPException  # noqa: E402
from open_webui.routers import images  # noqa: E402

check = Checks()
SOURCE = source_picture()
REQUEST = mock.MagicMock()
REQUEST.app.url_path_for = lambda name, **keys: f"/api/v1/files/{keys['id']}/content"
USER = types.SimpleNamespace(id="someone", role="admin")


def configure(model: str, **changes: Any) -> None:
    """What the admin page's Images settings hold: engine `openai`, base URL and key of the hub."""
    settings.clear()
    uploads.clear()
    values = {
        "IMAGE_GENERATION_ENGINE": "openai",
        "IMAGE_GENERATION_MODEL": model,
        "IMAGE_SIZE": SMALL,
        "IMAGES_OPENAI_API_BASE_URL": f"{URL}/v1",
        "IMAGES_OPENAI_API_KEY": KEY,
        "IMAGES_OPENAI_API_VERSION": "",
        "IMAGES_OPENAI_API_PARAMS": {},
        "IMAGE_EDIT_ENGINE": "openai",
        "IMAGE_EDIT_MODEL": model,
        "IMAGE_EDIT_SIZE": SMALL,
        "IMAGES_EDIT_OPENAI_API_BASE_URL": f"{URL}/v1",
        "IMAGES_EDIT_OPENAI_API_KEY": KEY,
        "IMAGES_EDIT_OPENAI_API_VERSION": "",
        **changes,
    }
    settings.update({images.IMAGE_CONFIG_KEYS[name]: value for name, value in values.items()})


async def generate(n: int = 1, **form: Any) -> list[Any]:
    """Open WebUI's answer to its own page."""
    wanted = images.CreateImageForm(prompt=PROMPT, n=n, **form)
    return await images.image_generations(REQUEST, wanted, user=USER)


async def edit(image: Any, **form: Any) -> list[Any]:
    """The same of an edit."""
    return await images.image_edits(REQUEST, images.EditImageForm(image=image, prompt=EDIT_PROMPT, **form), user=USER)


def data_url(data: bytes, kind: str = "png") -> str:
    """A picture as Open WebUI hands it to its edits."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def uploaded(n: int, **looks: Any) -> Any:
    """The last stored picture; fails where not `n` were stored."""
    expect(len(uploads) == n, f"{len(uploads)} pictures were stored, not {n}")
    data, content_type = uploads[-1]
    expect(content_type == f"image/{looks.get('kind', 'PNG').lower()}", f"content type {content_type}")
    return opened(data, **looks)


for name in ("dall-e-2", "dall-e-3", "gpt-image-1", "builtin"):

    @check(f"generate: {name}")
    async def _(name: str = name) -> None:
        configure(name)
        answer = await generate()
        expect(answer[0]["url"] == "/api/v1/files/1/content", answer)
        uploaded(1)


@check("generate: no size set, 512x512 asked by the page")
async def _() -> None:
    configure("dall-e-2", IMAGE_SIZE="512x512")
    await generate()
    uploaded(1, size="512x512")


@check("generate: size auto of a gpt-image model")
async def _() -> None:
    configure("gpt-image-1", IMAGE_SIZE="auto")
    await generate()
    uploaded(1, size=None)


@check("generate: n=2, size from the page")
async def _() -> None:
    configure("dall-e-2")
    await generate(n=2, size="128x128")
    uploaded(2, size="128x128")
    expect(uploads[0][0] != uploads[1][0], "the two pictures are the same")


@check("generate: with ?api-version= and parameters of the admin")
async def _() -> None:
    configure(
        "gpt-image-1",
        IMAGES_OPENAI_API_VERSION="2025-04-01-preview",
        IMAGES_OPENAI_API_PARAMS={"output_format": "webp", "quality": "low", "seed": 3},
    )
    await generate()
    uploaded(1, kind="WEBP")


@check("edit: dall-e-2, one image")
async def _() -> None:
    configure("dall-e-2")
    await edit(data_url(SOURCE))
    expect_edit(uploaded(1), SOURCE)


@check("edit: gpt-image-1, one image")
async def _() -> None:
    configure("gpt-image-1")
    await edit(data_url(SOURCE))
    expect_edit(uploaded(1), SOURCE)


@check("edit: gpt-image-1, two images, one of them JPEG")
async def _() -> None:
    configure("gpt-image-1")
    await edit([data_url(SOURCE), data_url(source_picture(kind="JPEG"), "jpeg")], n=1, background="opaque")
    expect_edit(uploaded(1), SOURCE)


@check("edit: with ?api-version=")
async def _() -> None:
    configure("gpt-image-1", IMAGES_EDIT_OPENAI_API_VERSION="2025-04-01-preview")
    await edit(data_url(SOURCE))
    expect_edit(uploaded(1), SOURCE)


@check("error: wrong key and unknown model become its 400")
async def _() -> None:
    configure("dall-e-2", IMAGES_OPENAI_API_KEY=WRONG_KEY)
    error = await araises(HTTPException, generate())
    expect(error.status_code == 400 and "Unauthorized" in error.detail, f"{error.status_code} {error.detail}")
    configure("no-such-model")
    error = await araises(HTTPException, generate())
    expect(error.status_code == 400 and "Not Found" in error.detail, f"{error.status_code} {error.detail}")


@check("it refuses links to private addresses, so base64 must be answered")
async def _() -> None:
    data, content_type = await images.get_image_data(f"{URL}/files/a/b.png")
    expect(data is None and content_type is None, "it follows links to loopback now: add checks of links")


if __name__ == "__main__":
    check.run()
