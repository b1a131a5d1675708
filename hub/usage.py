"""Token counts of pictures, by one rule for every local model, so that programs which meter tokens can go on.

text    one token for every 4 bytes of the prompt in UTF-8, rounded up
images  one token for every 32x32 pixels, rounded up to whole patches: 1024 for 1024x1024. Sources and masks count
        as input at their own size, finished pictures as output at theirs.

The numbers depend on the request and the answer's size alone, not on a model's tokenizer or its steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from hub.types import Size, Usage

BYTES_PER_TOKEN = 4
PATCH = 32


def count_usage(prompt: str, sources: Sequence[Size], output: Size, n: int) -> Usage:
    """The usage of n pictures of one size, made from a prompt and source pictures, a mask among them."""
    return Usage(
        text_tokens=-(-len(prompt.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN),
        image_tokens=sum(map(image_tokens, sources)),
        output_tokens=n * image_tokens(output),
    )


def image_tokens(size: Size) -> int:
    """The tokens of one picture."""
    return -(-size.width // PATCH) * -(-size.height // PATCH)
