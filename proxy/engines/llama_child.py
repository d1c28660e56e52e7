"""The process of the embedded engine: llama.cpp's own HTTP server, for as long as the gateway lives.

Run as a script with its settings as one JSON argument. It prints its address once the model is ready to answer, and
ends when its standard input does: that happens however the gateway ends, even by SIGKILL, and on every platform.
"""

import importlib
import json
import os
import sys
import threading
from typing import Any


def serve(settings: dict[str, Any]) -> None:
    """Serve until the process ends. Raises SystemExit with llama.cpp's word when the model cannot be served."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever the library prints is log
    threading.Thread(target=_end_with_parent, daemon=True).start()

    # OpenMP's threads would spin while they wait and starve the gateway; it is read when the library loads.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = set(settings["aliases"])
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["context"] * settings["slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    params.ui = params.fit_params = False
    params.cache_ram_mib = 256
    params.verbosity = 2  # warnings and errors
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    os.write(answer, f"{server.listening_address}\n".encode())
    os.close(answer)
    threading.Event().wait()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
