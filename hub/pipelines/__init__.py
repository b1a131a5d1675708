"""How a model folder becomes a runnable pipeline.

auto serves every diffusers pipeline. A family that differs gets a file named as diffusers names its folder.
"""
