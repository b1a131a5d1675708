"""With the policy "never leave", in each of its three forms (the hub is offline, the route stays, the key may not), no
socket but loopback is opened, whatever happens to the local targets: strace watches real hubs, in namespaces where
packets could leave and would be counted. The control: the same process, asked by a key that may, is seen to try."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from network_watch import can_make_namespaces, can_trace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_make_namespaces() or not can_trace(), reason="needs namespaces of its own, and strace in them"
    ),
]

FAR = ("literal", "lan", "named", "own")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    command = ["unshare", "-rnm", sys.executable, str(Path(__file__).parent / "never_leaves.py")]
    folder = tmp_path_factory.mktemp("never")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("policy", ["key", "route", "offline"])
def test_all_local_targets_fail_and_that_is_what_is_told(seen: Any, policy: str) -> None:
    outcomes = seen[policy]
    assert outcomes["absent"] == outcomes["damaged"] == [503, "model_unusable"]
    assert outcomes["killed"] == [503, "engine_unavailable"]
    assert outcomes["streamed"] == [200, "model_unusable"], "an event, since its stream had begun"
    assert outcomes["works"] == [200, ""], "what can be drawn here is drawn"


@pytest.mark.parametrize("policy", ["key", "route"])
def test_what_does_not_fit_does_not_leave_either(seen: Any, policy: str) -> None:
    assert seen["memory"][policy] == [503, "out_of_memory"]


@pytest.mark.parametrize("target", FAR)
def test_a_remote_model_by_itself_is_refused_with_what_is_in_its_way(seen: Any, target: str) -> None:
    assert seen["key"][target] == [403, "remote_not_allowed"]
    assert seen["offline"][target] == [503, "offline"]


def test_a_route_that_begins_far_away_is_served_here_or_not_at_all(seen: Any) -> None:
    assert seen["key"]["far-first"] == seen["offline"]["far-first"] == [503, "model_unusable"]


def test_no_socket_but_loopback_was_tried(seen: Any) -> None:
    assert seen["attempts"] == {"keys": [], "offline": [], "memory": []}
    assert seen["packets"] == 0
    assert seen["refused by the guard"] == 0, "nothing had to be held back"


def test_the_detectors_see_it_where_it_is_allowed(seen: Any) -> None:
    tried = set(seen["attempts of the control"])
    assert {"connect 192.0.2.1", "connect 10.255.255.1"} <= tried
    assert "connect 192.0.2.53" in tried, "names are asked for"
    assert not seen["way"] or seen["packets of the control"] > 0
    assert all(status in (503, 504) for status, _ in seen["control"])
