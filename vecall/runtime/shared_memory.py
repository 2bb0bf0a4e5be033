"""Memory that several processes of one machine read and write: anonymous files of Linux, which have no name.

The system frees such a file with the last process that maps it, however the processes end: nothing can be left behind.
Its pages take memory when they are first touched, and are not limited by the size of /dev/shm, which is 64 MiB in many
containers.
"""

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TOKEN_BYTES = 16


@dataclass(frozen=True)
class SharedFile:
    """An anonymous file, as the process that created it tells it to others.

    Attributes:
        process: Process that created it.
        descriptor: Its descriptor there.
        size: Bytes of content.
        token: What the file holds behind its content, by which another process recognizes it.
    """

    process: int
    descriptor: int
    size: int
    token: bytes

    def map(self) -> mmap.mmap:
        """Map the file into memory, in any process of the same machine and user while the creator has it open.

        Raises:
            OSError: It cannot be opened, or it is not that file: the creator runs on another machine or in another
                container.
        """
        descriptor = os.open(f"/proc/{self.process}/fd/{self.descriptor}", os.O_RDWR)
        try:
            if os.pread(descriptor, _TOKEN_BYTES, self.size) != self.token:
                raise OSError(f"process {self.process} of this machine has no such file")
            return mmap.mmap(descriptor, self.size)
        finally:
            os.close(descriptor)


@contextmanager
def create_shared_file(size: int) -> Iterator[SharedFile]:
    """Create a file of zeros, which others can map until the end of the context, and use as long as they like.

    Args:
        size: Bytes, at least 1; memory is taken only for pages that are touched.

    Raises:
        OSError: The system has no such files, or refuses one.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no anonymous files in memory")
    descriptor = os.memfd_create("vecall")
    try:
        token = secrets.token_bytes(_TOKEN_BYTES)
        os.truncate(descriptor, size)
        os.pwrite(descriptor, token, size)
        yield SharedFile(os.getpid(), descriptor, size, token)
    finally:
        os.close(descriptor)
