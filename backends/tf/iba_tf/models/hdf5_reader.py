"""A program that reads an HDF5 file to its end, with little time and memory.

The HDF5 library does not come to an end in some damaged files, and crashes in a few. This program, which
imports nothing else of this library, finds that out before the file is opened where it would do harm.
"""

from __future__ import annotations

import sys

import h5py


def read(path: str, limit: int) -> None:
    """Read all attributes and the index of each data set.

    Args:
        path: the file.
        limit: bytes that the content may take.

    Raises:
        ValueError: it takes more.
        Exception: the file is damaged.
    """
    left = limit

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal left
        for attribute in item.attrs:
            value = item.attrs[attribute]
            left -= int(getattr(value, "nbytes", 0)) or len(str(value))
        if isinstance(item, h5py.Dataset):
            left -= item.nbytes
            if item.chunks is not None:
                item.id.get_num_chunks()
        if left < 0:
            raise ValueError("it unpacks to more than any model of its size")

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)


def main(path: str, seconds: str, limit: str) -> None:
    """Read a file within limits of computing time and of memory."""
    try:
        import resource
    except ImportError:  # not on Windows, where only the waiting of the other process has an end
        pass
    else:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (2**32 + int(limit), 2**32 + int(limit)))
    read(path, int(limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
