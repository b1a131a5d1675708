"""The local engine: a worker process per device that runs diffusers pipelines, and their supervisor in the API process.

protocol    the frames that travel between the two
supervisor  API process: a worker for each device, one awaitable call per request. No torch.
placement   pure: which worker runs a request
worker_process  API process: starts, watches and restarts one worker
in_flight   API process: the requests that a worker has
worker      worker process: reads frames, owns the device thread, encodes pictures
arguments   a request in its pipeline's words, and what that cannot honour; receipts what its pictures follow from
devices     worker process: which devices there are, and their memory
weave       a request's life on the device thread: every picture is a pipeline call in a greenlet
meeting     the methods of shared modules where those calls meet
halting     ends forwards that nobody waits for any more
merge       how calls are merged into one forward, cut for several cores, and its output is split
outputs     what modules return
streams     parts of a forward side by side, on a CPU
memo        what text encoders have said
skipping    lossy: denoising steps that are not computed
compiling   forwards that were compiled in the background; forms tells calls apart, precompile is the compiler's process
policy      pure: which waiting calls run next
saturation  pure: how many rows are worth a forward, learned and remembered
meter       times forwards for it
"""
