"""The owner's models: fetched, added, verified, carried and removed. `hub models` and the admin API enter here.

layout says where weights lie, contents what is kept and what is refused, progress how long work is told of.
"""
