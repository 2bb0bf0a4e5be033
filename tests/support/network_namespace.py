"""Run a command in a network namespace of its own, in which nothing but the loopback interface exists.

`python network_namespace.py COMMAND...`: the namespace ends with its last process. Where namespaces are forbidden the
command runs without, and VECALL_NETWORK_NAMESPACE says why; else it is "own".
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

VARIABLE, OWN = "VECALL_NETWORK_NAMESPACE", "own"
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def enter_namespace():
    """Move this process into a new namespace; it must have a single thread.

    Raises:
        OSError: namespaces are forbidden here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) != 0:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:  # as one's own root, for users who are not root
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))


def main(command):
    try:
        enter_namespace()
        os.environ[VARIABLE] = OWN
    except OSError as error:
        os.environ[VARIABLE] = f"network namespaces are forbidden here ({error.strerror})"
        sys.stderr.write(f"{os.environ[VARIABLE]}: tests that start a server are skipped\n")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
