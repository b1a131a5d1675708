"""A body in parts is sent in pieces that hold what the parts hold."""

from __future__ import annotations

import random

import pytest

from hub.api.parts import PIECE, SMALL, pieces


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_parts_in_order_and_none_is_too_large(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice((0, 1, 37, PIECE - 1, PIECE, PIECE + 1, chance.randrange(4 * PIECE))) for _ in range(8)]
    parts = [memoryview(chance.randbytes(size))[:size] if size % 2 else chance.randbytes(size) for size in sizes]
    sent = list(pieces(parts))
    assert b"".join(sent) == b"".join(parts)
    assert all(0 < len(piece) <= PIECE for piece in sent)
    large = sum(-(-size // PIECE) for size in sizes if size > SMALL)
    assert len(sent) <= 2 * large + 1, "small parts go together"
