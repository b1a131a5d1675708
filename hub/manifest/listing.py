"""What all manifests have in common: who a model is, and what it costs."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated

from msgspec import Meta, Struct, field

from hub.types import Size

# A `$` of Python's alone would let a line's end pass.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$(?!\n)"
ModelId = Annotated[str, Meta(pattern=ID_PATTERN)]
SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
SizeText = Annotated[str, Meta(pattern=f"^{SIZE.pattern}$")]


def parse_size(text: str) -> Size:
    """`"1024x768"` as a Size; the text must match SIZE."""
    width, _, height = text.partition("x")
    return Size(int(width), int(height))


class Listing(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every id that answers requests tells of itself."""

    id: ModelId
    name: str
    description: str
    license: str = ""
    owned_by: str = "local"
    created: dt.date = dt.date(2026, 1, 1)
    aliases: list[ModelId] = field(default_factory=list)

    @property
    def created_at(self) -> int:
        """Unix seconds, as OpenAI's model objects want it."""
        return int(dt.datetime.combine(self.created, dt.time(), dt.UTC).timestamp())


Usd = Annotated[float, Meta(ge=0, le=1_000_000)]
PRICE_KEY_PATTERN = r"^(low|medium|high|\*)/([1-9][0-9]{0,4}x[1-9][0-9]{0,4}|\*)$(?!\n)"
PriceKey = Annotated[str, Meta(pattern=PRICE_KEY_PATTERN)]


class TokenPrices(Struct, forbid_unknown_fields=True, kw_only=True):
    """US dollars for a million tokens: of text, of source pictures, and of pictures that were made. `output_tokens`:
    how many a picture takes, by quality and size as in `PricesSection.images`, to reckon with beforehand."""

    text: Usd = 0.0
    image: Usd = 0.0
    output: Usd = 0.0
    output_tokens: dict[PriceKey, Annotated[int, Meta(ge=0, le=10_000_000)]] = field(default_factory=dict)


class PricesSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a model costs, in US dollars; what is given adds up. `images`: a picture, by `quality/size`, where either
    may be `*`; the most exact key counts. `megapixel`: 1,048,576 pixels made. `tokens`: where the provider meters
    them. `second`: of a local device. `as_of`: the day on which the table was right."""

    images: dict[PriceKey, Usd] = field(default_factory=dict)
    megapixel: Usd = 0.0
    tokens: TokenPrices | None = None
    second: Usd = 0.0
    as_of: dt.date | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing in it says that anything costs."""
        return not (self.images or self.megapixel or self.tokens or self.second)
