"""Listens in every process of a federation that is started with this folder on PYTHONPATH. Writes to $CORDON_WIRETAP.

``frames-<pid>``: every F3 frame that the process sends or receives, as it is outside of TLS. ``plain/``: each packed
vector (update or model) before it is sealed, raw float32. ``sealed/``: each payload after it was sealed, named by its
SHA-256. ``headers-<pid>.jsonl``: the headers that go with these. ``packed-<pid>``: what was packed, and where.
"""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path

TAP = Path(os.environ.get("CORDON_WIRETAP", ""))
LOCK = threading.Lock()


def append(name, data):
    with LOCK, open(TAP / f"{name}-{os.getpid()}", "ab") as file:
        file.write(data)


def keep(folder, data):
    path = TAP / folder / hashlib.sha256(data).hexdigest()
    if not path.exists():
        path.write_bytes(data)


def as_bytes(frame):
    return b"".join(map(bytes, frame)) if isinstance(frame, list) else bytes(frame)


def tap_connection(module):
    init = module.SfmConnection.__init__

    def tapped(self, conn, *args, **kwargs):
        init(self, conn, *args, **kwargs)
        send = conn.send_frame

        def send_frame(frame):
            append("frames", as_bytes(frame))
            return send(frame)

        conn.send_frame = send_frame

    module.SfmConnection.__init__ = tapped


def tap_manager(module):
    process = module.ConnManager.process_frame

    def process_frame(self, sfm_conn, frame):
        append("frames", as_bytes(frame))
        return process(self, sfm_conn, frame)

    module.ConnManager.process_frame = process_frame


def tap_messages(module):
    import numpy as np

    pack, seal = module.pack, module.seal

    def tapped_pack(name, vector):
        raw = np.ascontiguousarray(vector, np.float32).tobytes()
        keep("plain", raw)
        line = {"name": name, "sha256": hashlib.sha256(raw).hexdigest(), "site": os.getcwd()}
        append("packed", (json.dumps(line) + "\n").encode())
        return pack(name, vector)

    def tapped_seal(header, plaintext, key):
        signed, sealed = seal(header, plaintext, key)
        keep("sealed", sealed)
        line = {"kind": type(header).__name__, "site": os.getcwd(), **module.body_of(signed)}
        append("headers", (json.dumps(line) + "\n").encode())
        return signed, sealed

    module.pack, module.seal = tapped_pack, tapped_seal


TAPS = {
    "nvflare.fuel.f3.sfm.sfm_conn": tap_connection,
    "nvflare.fuel.f3.sfm.conn_manager": tap_manager,
    "cordon.messages": tap_messages,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the module be found as ever, and taps it once it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name not in TAPS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            TAPS[name](module)

        spec.loader.exec_module = exec_module
        return spec


if "CORDON_WIRETAP" in os.environ:
    sys.meta_path.insert(0, Finder())
