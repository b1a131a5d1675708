from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.api.conftest import call
from tests.conftest import Server, run_server, wait_for

ALIASES = {
    *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
    *("gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst"),
    *("gpt-image-2.6-flare", "chatgpt-image-latest"),
}


def test_openais_client_lists_the_built_in_model_and_its_aliases(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == ALIASES | {"builtin"}
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in listed.values())


def test_openais_client_gets_one_model_and_a_404_for_another(client: openai.OpenAI) -> None:
    assert client.models.retrieve("dall-e-3").model_extra == {"root": "builtin"}
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("dalle")
    assert caught.value.code == "model_not_found"


def test_an_id_with_a_slash_is_looked_up_whole(server: Server) -> None:
    answer = call(f"{server.url}/v1/models/some/model")
    assert answer.status == 404
    assert "some/model" in answer.json["error"]["message"]


def test_health_and_readiness_need_no_key(keyed_server: Server, server: Server) -> None:
    assert call(f"{keyed_server.url}/health").json["status"] == "ok"
    assert call(f"{server.url}/ready").status == 200


@pytest.mark.slow
def test_health_and_readiness_tell_each_device_and_one_that_works_is_enough(tmp_path: Path) -> None:
    with run_server(tmp_path, HUB_DEVICE="cpu,cuda:77") as server:
        told: list[Any] = []

        def known() -> bool:
            answer = call(f"{server.url}/ready")
            assert (answer.status, answer.json["status"]) == (200, "ok")
            told.append(answer.json["devices"])
            return bool(told[-1][1]["status"] == "failed")

        wait_for(known, server=server)
        assert told[-1][0] == {"device": "cpu", "status": "ok"}
        reason = told[-1][1].pop("reason")
        assert told[-1][1] == {"device": "cuda:77", "status": "failed"}
        assert "HUB_DEVICE=cpu,cuda:77 (`device` in hub.toml) names cuda:77, but torch finds" in reason
        health = call(f"{server.url}/health").json
        assert [each["status"] for each in health["devices"]] == ["ok", "failed"]
