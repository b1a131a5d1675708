"""PixArt-alpha and PixArt-Sigma resample what they draw unless they are told not to."""

from __future__ import annotations

from hub.pipelines.families import Family, unbinned

FAMILIES = (Family(classes=("PixArtAlphaPipeline", "PixArtSigmaPipeline"), adapt=unbinned),)
