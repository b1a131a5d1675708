"""Hub: a local-first, offline-capable server for image generation with OpenAI's wire."""

__version__ = "0.1.0"
