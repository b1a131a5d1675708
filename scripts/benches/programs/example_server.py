"""A server as diffusers' examples/server shows one, made anew:  example_server.py PORT FOLDER DTYPE DEVICE THREADS

FastAPI; one loaded pipeline; for each request a pipeline over its modules with a noise scheduler of its own, run in a
thread pool. The example's pool has as many threads as asyncio gives it; one thread is the same without their quarrel.
It answers the file itself, where the example stores it and answers a link.
"""

import asyncio
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import FastAPI, Response
from pydantic import BaseModel

PORT, FOLDER, DTYPE, DEVICE, THREADS = sys.argv[1:]


class Wish(BaseModel):
    """A request's body."""

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int


app = FastAPI()
shared = DiffusionPipeline.from_pretrained(FOLDER, torch_dtype=getattr(torch, DTYPE), local_files_only=True).to(DEVICE)
pool = ThreadPoolExecutor(int(THREADS)) if int(THREADS) else None


def draw(wish: Wish) -> bytes:
    """One picture as a PNG file."""
    scheduler = shared.scheduler.from_config(shared.scheduler.config)
    extra = {name: value for name, value in shared.config.items() if name == "requires_safety_checker"}
    own = type(shared)(**{**shared.components, **extra, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)
    arguments = wish.model_dump()
    generator = torch.Generator().manual_seed(arguments.pop("seed"))
    buffer = io.BytesIO()
    own(**arguments, generator=generator).images[0].save(buffer, "PNG")
    return buffer.getvalue()


@app.post("/v1/images/generations")
async def generate(wish: Wish) -> Response:
    """Draws in the pool, while the loop goes on."""
    content = await asyncio.get_running_loop().run_in_executor(pool, draw, wish)
    return Response(content, media_type="image/png")


@app.get("/health")
async def health() -> dict[str, str]:
    """It lives."""
    return {"status": "ok"}


uvicorn.run(app, host="127.0.0.1", port=int(PORT), log_level="warning")
