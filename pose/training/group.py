"""The processes that train one network together, and what they add up."""

import datetime
import os
import socket
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

# Nobody waits at another while one validates or saves; a process that is stopped for a while, as
# by a debugger, is waited for.
PATIENCE = datetime.timedelta(hours=1)
HOST = "127.0.0.1"

T = TypeVar("T")


class PeerLostError(ConnectionError):
    """Another process of the group is gone, or does not answer."""

    # What is recorded of the one that lost it.
    status, stop_reason = "KILLED", "killed"


class ProcessGroup:
    """This process as one of several that train together: `rank` of `size`, on `device`.

    Whatever is exchanged is the same in all of them afterwards, bit by bit.
    """

    def __init__(self, store: "dist.Store", rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        where = {"store": store, "rank": rank, "world_size": size, "timeout": PATIENCE}
        if device.type == "cuda":
            torch.cuda.set_device(device)
            where["device_id"] = device
        _stay_on_this_machine()
        _or_lost(lambda: dist.init_process_group(backend_of(device), **where))

    def leave(self) -> None:
        """Not be part of it any more."""
        dist.destroy_process_group()

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes of `values`, which it replaces.

        Raises:
            PeerLostError: not all processes are there.
        """
        _or_lost(lambda: dist.all_reduce(values))
        return values

    def gather(self, values: Tensor) -> Tensor:
        """`values` of all processes, `(size, *values.shape)`, in the order of their ranks.

        Raises:
            PeerLostError: not all processes are there.
        """
        found = [torch.empty_like(values) for _ in range(self.size)]
        _or_lost(lambda: dist.all_gather(found, values))
        return torch.stack(found)

    def share(self, num_images: int) -> range:
        """The positions, of so many images, that this process learns from; empty where it has none.

        Shares differ by one image at most.
        """
        bounds = [rank * num_images // self.size for rank in (self.rank, self.rank + 1)]
        return range(*bounds)


def backend_of(device: torch.device) -> str:
    """What adds up on `device`."""
    return "nccl" if device.type == "cuda" else "gloo"


def can_add(device: torch.device) -> bool:
    """Whether this torch can add up over processes on `device`."""
    if device.type == "mps" or not dist.is_available():
        return False
    return dist.is_nccl_available() if device.type == "cuda" else dist.is_gloo_available()


def open_store(size: int) -> "tuple[dist.Store, int]":
    """Where the processes of a group find each other: at a free port of this machine alone.

    Returns:
        The store, which lives as long as this process keeps it, and its port.
    """
    listener = socket.create_server((HOST, 0))
    port: int = listener.getsockname()[1]
    store = dist.TCPStore(
        HOST, port, size, True, PATIENCE, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, port


def find_store(port: int, size: int) -> "dist.Store":
    """The store at `port`.

    Raises:
        PeerLostError: nobody is there.
    """
    return _or_lost(lambda: dist.TCPStore(HOST, port, size, False, PATIENCE))


def _stay_on_this_machine() -> None:
    """Have processes meet at the loopback interface, whatever the machine's name stands for."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def _or_lost(exchange: Callable[[], T]) -> T:
    try:
        return exchange()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLostError(str(error)) from error
