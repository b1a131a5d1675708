"""PixArt-Alpha and -Sigma: called as usual, at the size that the transformer tells."""

from __future__ import annotations

from hub.pipelines.families import Family
from hub.pipelines.suggested import Found, Suggested


def suggest(found: Found) -> Suggested:
    """As published; the LCM variants of Alpha have a scheduler of their own."""
    usual = Suggested(native=found.side, multiple=(found.factor or 8) * found.patch, steps=20, guidance=4.5)
    if found.scheduler_class == "LCMScheduler":
        return usual.guess("Its noise scheduler is one for few steps without guidance.", steps=4, guidance=0.0)
    return usual


FAMILIES = (Family(classes=("PixArtAlphaPipeline", "PixArtSigmaPipeline"), tasks=("text-to-image",), suggest=suggest),)
