"""Python processes that have torch, scvi-tools and trvae_sc imported when they start.

Imports take five seconds, and tests start some thirty processes. So one process imports, and what runs
as ``warm.py ADDRESS run EXECUTABLE ...`` in place of ``python ...`` is a fork of it: with the arguments,
environment, folder and streams of whoever asks, who waits for it and ends as it ends.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import types
from pathlib import Path


def ask(address, executable, arguments):
    """Run Python with such arguments; return its exit status."""
    call = {"executable": executable, "arguments": arguments, "folder": str(Path.cwd())}
    text = json.dumps({**call, "environment": dict(os.environ)}).encode()
    end = time.monotonic() + 60
    while True:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect("\0" + address)
            break
        except ConnectionRefusedError:  # not there yet
            server.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
    socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(text)
    status = int.from_bytes(server.recv(4), "big", signed=True)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if status != -signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


def serve(address, owner):
    """Import and wait for calls while the owner lives; return each call, in a process of its own."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind("\0" + address)
    except OSError:  # another process of the same tests serves
        sys.exit()
    listener.listen(64)
    import gc

    import trvae_sc
    import trvae_sc.cli._commands
    import trvae_sc.family
    import trvae_sc.report

    trvae_sc.TRVAE  # noqa: B018  # imports torch and scvi-tools
    gc.freeze()
    owner = os.pidfd_open(owner)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener in select.select([listener, owner], [], [])[0]:
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(owner)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return accept(caller)
        caller.close()
    sys.exit()


def accept(caller):
    """Return the call in a child; wait for the child, and kill it if the caller is killed."""
    size, streams, *_ = socket.recv_fds(caller, 8, 3)
    with caller.makefile("rb") as file:
        call = json.loads(file.read(int.from_bytes(size, "big")))
    child = os.fork()
    if child == 0:
        os.setsid()
        caller.close()
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
            os.close(stream)
        return call
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if ended not in select.select([caller, ended], [], [])[0]:
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # the caller was killed
        caller.sendall(status.to_bytes(4, "big", signed=True))
    os._exit(0)


def own_lock():
    """Give progress bars a semaphore of this process: a fork that is killed with a shared one stops all."""
    from tqdm import auto, std

    with contextlib.suppress(AttributeError):
        del std.TqdmDefaultWriteLock.mp_lock
    lock = std.TqdmDefaultWriteLock()
    for bars in (std.tqdm, auto.tqdm):  # each has its own
        bars.set_lock(lock)


def run(call):
    """Do what Python does with such arguments."""
    import runpy

    import numpy as np
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    np.random.seed(None)  # noqa: NPY002  # what an import finds anew
    torch.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", "0"))
    own_lock()
    sys.executable = call["executable"]
    first, *rest = call["arguments"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    own = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != own]
    if first == "-m":
        sys.path.insert(0, call["folder"])
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.path.insert(0, str(Path(first).resolve().parent))
        sys.argv = [first, *rest]
        main.__file__ = first
        exec(compile(Path(first).read_bytes(), first, "exec"), vars(main))


if __name__ == "__main__":
    address, what, *rest = sys.argv[1:]
    if what == "run":
        sys.exit(ask(address, rest[0], rest[1:]))
    run(serve(address, int(rest[0])))
