"""The remote engine: an existing `vllm serve`, or several replicas of one, asked over HTTP.

`engine` is what the server loads. `examination` finds whether a replica may be used, `watch` lets it in and out of the
`rotation`, `fleet` scores over those in it; `replica` is the HTTP of one, `completions` and `pooling` are the two ways
of asking.
"""

from tokenpriority_service.engines.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
