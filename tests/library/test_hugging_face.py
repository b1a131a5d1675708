"""The stand-in of Hugging Face, driven by the real client: what it proves of a pull is as good as it is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.conftest import ROOT
from tests.hugging_face import StandIn

FILES: dict[str, bytes | Path] = {
    "README.md": b"# A model\n",
    "model_index.json": b"{}",
    "unet/config.json": b'{"a": 1}',
    "unet/diffusion_pytorch_model.safetensors": bytes(range(256)) * 2000,
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.setattr(constants, name, True)
    with StandIn() as stand_in:
        yield stand_in
    huggingface_hub.close_session()


def info(there: StandIn, repo: str = "org/name", revision: str | None = None, token: str | bool = False) -> object:
    return HfApi(endpoint=there.url, token=token).model_info(repo, revision=revision, files_metadata=True)


def test_model_info_has_commit_sizes_digests_licence_and_gate(there: StandIn) -> None:
    commit = there.add("org/name", FILES, licence="mit", gated="auto")
    found = HfApi(endpoint=there.url, token=False).model_info("org/name", files_metadata=True)
    assert found.sha == commit
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert (found.card_data or {}).get("license") == "mit"
    assert found.gated == "auto"
    listed = {each.rfilename: each for each in found.siblings or ()}
    assert set(listed) == set(FILES)
    assert listed[WEIGHTS].size == 512_000
    assert listed[WEIGHTS].lfs is not None
    assert re.fullmatch("[0-9a-f]{64}", listed[WEIGHTS].lfs.sha256)
    assert listed["model_index.json"].lfs is None
    # `printf '{}' | git hash-object --stdin`
    assert listed["model_index.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    bare = HfApi(endpoint=there.url, token=False).model_info("org/name")
    assert {each.size for each in bare.siblings or ()} == {None}


def test_the_real_client_fetches_a_snapshot_and_finds_it_again_offline(there: StandIn, tmp_path: Path) -> None:
    commit = there.add("org/name", FILES)
    fetched = Path(snapshot_download("org/name", cache_dir=tmp_path, endpoint=there.url, token=False))
    assert fetched.name == commit
    for path, content in FILES.items():
        assert (fetched / path).read_bytes() == content
    assert snapshot_download("org/name", cache_dir=tmp_path, local_files_only=True) == str(fetched)
    assert {seen.server for seen in there.of(WEIGHTS)} == {"cdn"}


def test_every_revision_is_its_own_commit(there: StandIn, tmp_path: Path) -> None:
    first = there.add("org/name", FILES)
    second = there.add("org/name", {**FILES, "unet/config.json": b"{}"}, "refs/pr/1")
    assert first != second
    for revision, content in (("main", b'{"a": 1}'), ("refs/pr/1", b"{}"), (second, b"{}"), (first[:8], b'{"a": 1}')):
        fetched = hf_hub_download(
            "org/name", "unet/config.json", revision=revision, cache_dir=tmp_path, endpoint=there.url, token=False
        )
        assert Path(fetched).read_bytes() == content


def test_the_client_names_every_error_as_it_names_the_real_ones(there: StandIn, tmp_path: Path) -> None:
    there.add("org/name", FILES)
    there.add("org/gated", FILES, gated="manual")
    there.add("org/private", FILES, private=True)
    there.tokens = {"hf_none": set(), "hf_all": {"org/gated", "org/private"}}

    def download(repo: str, path: str = "unet/config.json", token: str | bool = False) -> str:
        return hf_hub_download(repo, path, cache_dir=tmp_path, endpoint=there.url, token=token)

    for repo in ("org/nothing", "org/private"):
        for token, status in ((False, 401), ("hf_none", 404)):
            with pytest.raises(RepositoryNotFoundError) as hidden:
                info(there, repo, token=token)
            assert hidden.value.response.status_code == status
            assert not isinstance(hidden.value, GatedRepoError)
    with pytest.raises(RevisionNotFoundError):
        info(there, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        download("org/name", "unet/none.json")
    info(there, "org/gated")  # what a gated repository has is no secret
    for token, status in ((False, 401), ("hf_none", 403)):
        with pytest.raises(GatedRepoError) as gated:
            download("org/gated", token=token)
        assert gated.value.response.status_code == status
    assert Path(download("org/gated", WEIGHTS, token="hf_all")).read_bytes() == FILES[WEIGHTS]
    assert Path(download("org/private", token="hf_all")).read_bytes() == FILES["unet/config.json"]
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        info(there, token="hf_wrong")
    assert not [seen for seen in there.seen if seen.server == "cdn" and "authorization" in seen.headers]


def test_ranges_are_as_http_has_them(there: StandIn) -> None:
    there.add("org/name", FILES)
    for path in (WEIGHTS, "unet/config.json"):
        content = FILES[path]
        assert isinstance(content, bytes)
        url = hf_hub_url("org/name", path, endpoint=there.url)
        for said, part in (("bytes=3-", content[3:]), ("bytes=0-3", content[:4]), ("bytes=-2", content[-2:])):
            answer = get_session().get(url, headers={"Range": said})
            assert (answer.status_code, answer.content) == (206, part)
            assert answer.headers["Content-Range"].endswith(f"/{len(content)}")
        beyond = get_session().get(url, headers={"Range": f"bytes={len(content)}-"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


def test_the_client_survives_a_cut_and_sees_a_flipped_bit(
    there: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add("org/name", FILES)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what it has of a piece of 10 MB it forgets
    there.fault(WEIGHTS, "cut", at=200_000)
    fetched = hf_hub_download("org/name", WEIGHTS, cache_dir=tmp_path, endpoint=there.url, token=False)
    assert Path(fetched).read_bytes() == FILES[WEIGHTS]
    assert [seen.range for seen in there.of(WEIGHTS) if seen.method == "GET"] == [None, "bytes=200000-"]
    there.fault(WEIGHTS, "flip", at=7)
    fetched = hf_hub_download("org/name", WEIGHTS, cache_dir=tmp_path / "b", endpoint=there.url, token=False)
    content = FILES[WEIGHTS]
    assert isinstance(content, bytes)
    assert Path(fetched).read_bytes() == content[:7] + b"\x06" + content[8:]


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/README.md").write_text("hello")
    command = [sys.executable, "-m", "tests.hugging_face", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("org/name ")
        url = process.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
        with urllib.request.urlopen(f"{url}/org/name/resolve/main/README.md", timeout=10) as answer:
            assert answer.read() == b"hello"
        process.terminate()
