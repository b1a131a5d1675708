from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.engine.policy import BURST, LEAD, PATIENCE, Ledger, Waiting, choose


def call(run: int, key: str = "unet", *, rows: int = 2, denoising: bool = True, remaining: int = 5, **more: Any):
    """A call at a module that is named as its key."""
    defaults = {"waited": 0, "cap": 16}
    return Waiting(run=run, key=key, rows=rows, denoising=denoising, remaining=remaining, **{**defaults, **more})


def chosen(waiting: Sequence[Waiting], ledger: Ledger | None = None) -> list[int]:
    return [each.run for each in choose(waiting, ledger or Ledger())]


def step(waiting: Sequence[Waiting], ledger: Ledger, cost: float = 1.0) -> list[int]:
    """What the weave does."""
    group = choose(waiting, ledger)
    ledger.note(waiting, group, cost)
    return [each.run for each in group]


def test_calls_of_one_key_go_together() -> None:
    assert set(chosen([call(1), call(2), call(3, "other")])) == {1, 2}


def test_the_run_with_the_least_left_to_do_chooses_the_key() -> None:
    assert chosen([call(1, "a", remaining=9), call(2, "b", remaining=2)]) == [2]


def test_text_encoders_and_decoders_go_before_denoising() -> None:
    assert chosen([call(1, remaining=1), call(2, "text", denoising=False, remaining=30)]) == [2]


def test_a_call_that_waits_long_is_not_starved_by_short_ones() -> None:
    assert chosen([call(1, "a", remaining=50, waited=60), call(2, "b", remaining=2)]) == [1]


def test_a_call_larger_than_the_cap_still_runs() -> None:
    assert chosen([call(1, rows=40)]) == [1]


def test_the_smallest_cap_of_those_that_share_a_forward_holds() -> None:
    """Calls of one key may have samples of several sizes: small ones must not bring many large ones along."""
    assert chosen([call(1, cap=16, remaining=1), call(2, cap=4, remaining=2), call(3, cap=16, remaining=3)]) == [1, 2]
    assert chosen([call(1, cap=16, remaining=1, rows=6), call(2, cap=4), call(3, cap=16)]) == [1, 3]


def test_a_call_that_does_not_fit_leaves_the_room_to_those_that_do() -> None:
    assert chosen([call(1, remaining=1, cap=4), call(2, remaining=2, rows=3), call(3, remaining=3)]) == [1, 3]


def test_calls_with_the_same_input_come_along_for_nothing() -> None:
    """Ten pictures of one prompt: its text encoder runs once."""
    calls = [call(n, "text", denoising=False, rows=1, cap=1, same="a prompt") for n in range(10)]
    assert chosen([*calls, call(10, "text", denoising=False, rows=1, cap=1, same="another")]) == list(range(10))
    assert chosen([call(1, rows=1, cap=1), call(2, rows=1, cap=1)]) == [1], "None is not an input"


def test_the_choice_does_not_write_the_ledger() -> None:
    ledger = Ledger(outside=2, now=1.0, service={"alice": 3.0})
    before = msgspec.structs.replace(ledger, service=dict(ledger.service))
    choose([call(1, owner="alice"), call(2, owner="bob")], ledger)
    assert ledger == before


# Owners


def test_the_owner_who_was_served_least_goes_first_however_long_its_run() -> None:
    ledger = Ledger(service={"alice": 3.0, "bob": 1.0})
    calls = [call(1, "a", owner="alice", remaining=1), call(2, "b", owner="bob", remaining=50)]
    assert chosen(calls, ledger) == [2]


def test_two_owners_get_the_same_share_of_the_device_not_of_the_forwards() -> None:
    """Alice's forwards cost four times as much, and she has ten times as many calls."""
    ledger, forwards = Ledger(), Counter[str]()
    calls = [*(call(n, f"a{n}", owner="alice") for n in range(10)), call(10, "b", owner="bob", remaining=50)]
    for _ in range(500):
        owner = choose(calls, ledger)[0].owner
        step(calls, ledger, cost=4.0 if owner == "alice" else 1.0)
        forwards[owner] += 1
    assert forwards == {"alice": 100, "bob": 400}


def test_a_newcomer_neither_has_credit_for_its_absence_nor_pays_for_it() -> None:
    ledger = Ledger()
    alice, bob = call(1, "a", owner="alice", remaining=1), call(2, "b", owner="bob", remaining=90)
    for _ in range(1000):
        step([alice], ledger)
    firsts = [step([alice, bob], ledger)[0] for _ in range(20)]
    assert Counter(firsts) == {1: 10, 2: 10}


def test_who_leaves_and_comes_back_has_no_more_than_its_share() -> None:
    """Asking one picture at a time, with pauses, does not get around the queue."""
    ledger, firsts = Ledger(), Counter[int]()
    alice, bob = call(1, "a", owner="alice"), call(2, "b", owner="bob", remaining=1)
    for tick in range(300):
        firsts[step([alice, bob] if tick % 3 else [alice], ledger)[0]] += 1
    assert firsts[2] <= 150


def test_ten_pictures_of_one_owner_leave_room_in_the_batch_for_the_one_of_another() -> None:
    calls = [call(n, owner="alice", remaining=1) for n in range(10)]
    calls += [call(10, owner="bob", remaining=40), call(11, owner="carol", remaining=40)]
    group = choose([msgspec.structs.replace(each, cap=8) for each in calls], Ledger(service={"bob": 5, "carol": 5}))
    assert [each.run for each in group] == [0, 10, 11, 1]


def test_the_rows_of_a_shared_forward_are_paid_by_their_owners() -> None:
    ledger = Ledger()
    step([call(1, rows=3, owner="alice"), call(2, rows=1, owner="bob")], ledger, cost=8.0)
    assert (ledger.served("alice"), ledger.served("bob"), ledger.served("carol")) == (6.0, 2.0, 0.0)


def test_rides_along_with_others_are_not_held_against_an_owner_for_ever() -> None:
    ledger = Ledger()
    for _ in range(1000):  # alice leads with a row, and bob's seven ride along
        step([call(1, rows=1, owner="alice", remaining=1), call(2, rows=7, owner="bob", remaining=9)], ledger)
        ledger.service["alice"] = ledger.now
    assert ledger.served("bob") - ledger.now <= LEAD


def test_the_ledger_forgets_who_has_no_lead() -> None:
    ledger = Ledger()
    step([call(1, owner="alice")], ledger)
    for _ in range(3):
        step([call(2, owner="bob")], ledger)
    assert set(ledger.service) == {"bob"}


def test_without_keys_everybody_is_one_owner_and_the_shortest_goes_first() -> None:
    ledger = Ledger(service={"": 7.0})
    assert chosen([call(1, "a", remaining=9), call(2, "b", remaining=8), call(3, "c", remaining=2)], ledger) == [3]


# Modules


def test_a_call_whose_module_is_there_goes_before_more_urgent_ones_that_would_push_it_out() -> None:
    away = call(1, "text", denoising=False, remaining=0, away=True)
    assert chosen([away, call(2, owner="alice", remaining=90)], Ledger(service={"alice": 9.0})) == [2]


def test_who_waits_for_modules_that_are_away_shares_one_upload_when_they_are_twice_as_many() -> None:
    away = [call(n, "vae", denoising=False, away=True) for n in range(3)]
    here = [call(10), call(11)]
    assert chosen([*away, *here]) == [10, 11]
    assert chosen([*away, call(4, "vae", denoising=False, away=True), *here]) == [0, 1, 2, 4]


def test_nobody_waits_for_ever_for_a_module_that_is_away() -> None:
    away = call(1, "other", away=True, waited=PATIENCE)
    assert chosen([away, *(call(n) for n in range(2, 9))]) == [1]
    assert chosen([msgspec.structs.replace(away, waited=PATIENCE - 1), *(call(n) for n in range(2, 9))])[0] == 2


def test_two_models_of_which_one_fits_take_long_turns() -> None:
    waited, turns, here = {1: 0, 2: 0}, "", 1
    for _ in range(4 * PATIENCE):
        calls = [call(run, str(run), owner=str(run), waited=waited[run], away=run != here) for run in (1, 2)]
        (here,) = chosen(calls)
        waited = {run: 0 if run == here else age + 1 for run, age in waited.items()}
        turns += str(here)
    assert turns.count("12") + turns.count("21") <= 4
    assert 1 <= turns.count("2") / turns.count("1") * 1.5 <= 2.5


def test_endless_text_encoders_let_a_step_through_after_a_burst() -> None:
    ledger = Ledger()
    order = [
        step([call(-1), call(number, f"text {number}", denoising=False)], ledger)[0] for number in range(3 * BURST)
    ]
    assert [number for number, run in enumerate(order) if run == -1] == [BURST, 2 * BURST + 1]


# All of it


KEYS: st.SearchStrategy[Hashable] = st.sampled_from("abc")


@given(
    st.lists(
        st.builds(
            Waiting,
            run=st.integers(0, 10**6),
            key=KEYS,
            rows=st.integers(1, 8),
            denoising=st.booleans(),
            remaining=st.integers(0, 50),
            waited=st.integers(0, 50),
            cap=st.integers(1, 20),
            owner=st.sampled_from(["", "alice", "bob"]),
            away=st.booleans(),
        ),
        min_size=1,
        max_size=30,
        unique_by=lambda waiting: waiting.run,
    ),
    st.builds(
        Ledger,
        outside=st.integers(0, 9),
        now=st.floats(0, 9),
        service=st.dictionaries(st.sampled_from(["", "alice", "bob"]), st.floats(0, 99)),
    ),
)
def test_a_choice_is_never_empty_mixes_no_keys_and_keeps_the_caps(waiting: list[Waiting], ledger: Ledger) -> None:
    group = choose(waiting, ledger)
    assert group
    assert len({each.run for each in group}) == len(group)
    assert len({each.key for each in group}) == 1
    assert len(group) == 1 or sum(each.rows for each in group) <= min(each.cap for each in group)
    before = {owner: ledger.served(owner) for owner in ("", "alice", "bob")}
    ledger.note(waiting, group, 1.0)
    assert all(ledger.served(owner) >= before[owner] for owner in before), "nobody gets time back"


OWNERS, RUNS, STEPS = "abc", 8, 12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.2, 0.5, 1.0]), st.booleans())
def test_every_call_runs_within_a_bound_whatever_arrives(seed: int, load: float, tight: bool) -> None:
    """Random runs of three owners at two models, as many as there is room for: while their own number, and that of
    their steps, is bounded, so is each wait."""
    chance, ledger, there = random.Random(seed), Ledger(), ""
    runs: dict[int, dict[str, Any]] = {}
    for number in range(500):
        if len(runs) < RUNS and (not runs or chance.random() < load):
            todo = ["text", *["step"] * chance.randint(1, STEPS), "decode"]
            more = {"shape": chance.randrange(2), "model": chance.randrange(2), "owner": chance.choice(OWNERS)}
            runs[number] = {"todo": todo, "waited": 0, "rows": chance.choice([1, 2]), **more}
        waiting = [
            call(
                run,
                f"{it['model']} {it['todo'][0]} {it['shape']}",
                away=tight and there != f"{it['model']} {it['todo'][0]}",
                rows=it["rows"],
                denoising=it["todo"][0] == "step",
                remaining=it["todo"].count("step"),
                waited=it["waited"],
                owner=it["owner"],
                cap=4,
            )
            for run, it in runs.items()
        ]
        group = choose(waiting, ledger)
        there = f"{runs[group[0].run]['model']} {runs[group[0].run]['todo'][0]}"
        ledger.note(waiting, group, 1 + 0.5 * sum(each.rows for each in group))
        for it in runs.values():
            it["waited"] += 1
        bound = 4 * len(OWNERS) * (STEPS + RUNS) * (4 if tight else 1)
        assert max(it["waited"] for it in runs.values()) <= bound
        for each in group:
            it = runs[each.run]
            it["waited"] = 0
            it["todo"].pop(0)
            if not it["todo"]:
                del runs[each.run]


def test_every_call_is_served_within_a_bound_while_newcomers_keep_coming() -> None:
    """A long run against an endless stream of one-step runs of another key: ageing must let it through."""
    ledger, long, waited, forwards = Ledger(), 20, 0, 0
    for newcomer in range(1000):
        if long == 0:
            break
        short = call(1000 + newcomer, "short", remaining=1)
        forwards += 1
        if step([call(1, "long", remaining=long, waited=waited), short], ledger) == [1]:
            long, waited = long - 1, 0
        else:
            waited += 1
    assert long == 0
    assert forwards <= sum(range(1, 21)) + 20
