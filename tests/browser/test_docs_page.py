"""The documentation page in a real browser: whole, quiet, without the network, and usable."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import KEY, Visit
from tests.conftest import Server

pytestmark = pytest.mark.browser


# A browser tells nobody what a form with files held, so the names are noted where swagger-ui hands it over.
RECORD_FORMS = """
window.sentForms = [];
const original = window.fetch;
window.fetch = (where, options) => {
  if (options?.body instanceof FormData) window.sentForms.push([...options.body.keys()]);
  return original(where, options);
};
"""


def document(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/openapi/openapi.json", timeout=10) as answer:
        return dict(json.load(answer))


def operations(server: Server) -> list[str]:
    paths = document(server)["paths"]
    return [f"{method.upper()} {path}" for path, item in paths.items() for method in item]


def open_page(visit: Visit, server: Server) -> Page:
    answer = visit.page.goto(f"{server.url}/docs")
    assert answer is not None
    assert answer.status == 200
    expect(visit.page.locator(".opblock")).to_have_count(len(operations(server)))
    return visit.page


def block(page: Page, method: str, path: str) -> Locator:
    """An operation's part of the page, opened."""
    found = page.locator(f".opblock-{method.lower()}", has=page.locator(f'[data-path="{path}"]'))
    found.locator(".opblock-summary-control").click()
    return found


def try_out(operation: Locator) -> Locator:
    """Sends the operation's request; returns the answer's status."""
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    return operation.locator(".live-responses-table .response .response-col_status").first


def test_the_page_shows_every_operation_of_the_document(visit: Visit, server: Server) -> None:
    page = open_page(visit, server)
    shown = [
        f"{each.locator('.opblock-summary-method').inner_text()} "
        f"{each.locator('[data-path]').get_attribute('data-path')}"
        for each in page.locator(".opblock").all()
    ]
    assert sorted(shown) == sorted(operations(server))


def test_the_page_asks_only_the_hub_and_complains_of_nothing(visit: Visit, server: Server) -> None:
    page = open_page(visit, server)
    for each in page.locator(".opblock-summary-control").all():
        each.click()  # all that can be drawn is drawn
        expect(page.locator(".opblock.is-open .responses-table")).to_have_count(1)
        each.click()
    page.wait_for_load_state("networkidle")
    assert visit.complaints == []
    assert visit.origins() == {server.url}
    assert any(url.endswith("/docs/swagger-ui-bundle.js") for url in visit.requests), "requests are recorded"


def test_the_policy_of_the_page_stops_scripts_and_requests_to_others(visit: Visit, server: Server) -> None:
    answer = visit.page.goto(f"{server.url}/docs")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    foreign = "http://127.0.0.1:9/x"  # a port that nothing listens on
    assert visit.page.evaluate(f"fetch('{foreign}').then(() => 'sent', error => error.name)") == "TypeError"
    visit.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'leaked = 1'}))")
    assert visit.page.evaluate("typeof leaked") == "undefined"
    assert len([words for words in visit.complaints if "Content Security Policy" in words]) >= 2


def test_a_link_cannot_make_the_page_show_a_foreign_document(visit: Visit, server: Server) -> None:
    visit.page.goto(f"{server.url}/docs?url=http://evil.example/openapi.json&configUrl=http://evil.example/c.json")
    expect(visit.page.locator(".opblock")).to_have_count(len(operations(server)))
    assert visit.origins() == {server.url}


def test_the_offered_request_draws_a_picture_and_its_link_shows_it(visit: Visit, server: Server) -> None:
    page = open_page(visit, server)
    create = block(page, "POST", "/v1/images/generations")
    expect(try_out(create)).to_have_text("200", timeout=60_000)
    answer = json.loads(create.locator(".live-responses-table .highlight-code code").first.inner_text())
    signature, name = answer["data"][0]["url"].split("/")[-2:]
    download = block(page, "GET", "/files/{signature}/{name}")
    download.get_by_role("button", name="Try it out").click()
    download.get_by_placeholder("signature").fill(signature)
    download.get_by_placeholder("name", exact=True).fill(name)
    download.get_by_role("button", name="Execute").click()
    shown = download.locator(".live-responses-table img")
    expect(shown).to_be_visible()
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [1024, 1024]
    assert visit.complaints == []
    assert visit.origins() == {server.url}


def test_a_form_starts_empty_and_what_stays_empty_is_not_sent(visit: Visit, server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    visit.page.add_init_script(RECORD_FORMS)
    page = open_page(visit, server)
    edit = block(page, "POST", "/v1/images/edits")
    edit.get_by_role("button", name="Try it out").click()
    fields = edit.locator("[data-property-name]")
    assert fields.count() > 10
    fill(edit, "prompt", "a red circle")
    fill(edit, "size", "64x64")
    picture = edit.locator('[data-property-name="image"]')
    picture.get_by_role("button", name="Add").click()
    picture.locator("input[type=file]").set_input_files(tmp_path / "white.png")
    edit.get_by_role("button", name="Execute").click()
    status = edit.locator(".live-responses-table .response .response-col_status").first
    expect(status).to_have_text("200", timeout=60_000)
    assert sorted(page.evaluate("sentForms.flat()")) == ["image", "prompt", "size"]
    # swagger-ui's own: it looks for a field of its own for files in lists, and then takes the one for files.
    assert [words for words in visit.complaints if "JsonSchema_string_binary" not in words] == []


def fill(operation: Locator, name: str, text: str) -> None:
    operation.locator(f'[data-property-name="{name}"] input[type=text]').fill(text)


def test_a_closed_hub_shows_its_page_and_its_paths_want_the_key(visit: Visit, closed_server: Server) -> None:
    page = open_page(visit, closed_server)
    models = block(page, "GET", "/v1/models")
    expect(try_out(models)).to_have_text("401")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".auth-container input").fill(KEY)
    page.locator(".auth-btn-wrapper .authorize").click()
    page.locator(".btn-done").click()
    models.get_by_role("button", name="Execute").click()
    expect(models.locator(".live-responses-table .response .response-col_status").first).to_have_text("200")
    assert page.evaluate(f"JSON.stringify({{...localStorage, ...sessionStorage}}).includes('{KEY}')") is False
    assert visit.origins() == {closed_server.url}
