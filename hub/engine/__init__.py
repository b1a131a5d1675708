"""The local engine: a worker process that runs diffusers pipelines, and its supervisor in the API process.

protocol    the frames that travel between the two
supervisor  API process: starts, watches and restarts the worker; one awaitable call per request. No torch.
worker      worker process: reads frames, owns the device thread, encodes pictures
weave       a request's life on the device thread: every picture is a pipeline call in a greenlet
meeting     the methods of shared modules where those calls meet
merge       how calls are merged into one forward, and its output is split
policy      pure: which waiting calls run next
saturation  pure: how many rows are worth a forward, learned and remembered
meter       times forwards for it
"""
