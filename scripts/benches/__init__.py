"""What scripts/bench measures: a module per section, named by what it measures.

report     tables, targets, and their place in docs/benchmarks.md
machine    device, dtype and versions; a process's memory and processor time
material   models with random weights, manifests, the environment of the public peers
sides      what is compared: a wish, the hub, the bare script
peers      hf-serve, and diffusers' server example
programs/  run in processes of their own
"""
