"""The vLLM engine: a scoring plugin inside vLLM's workers, and an engine that runs vLLM beside the server.

`engine` is what the server loads; `plugin`, `models` and `pooler` run inside vLLM's processes; `internals` is the one
file that touches what vLLM does not promise to keep. Importing this package imports nothing of vLLM.
"""
