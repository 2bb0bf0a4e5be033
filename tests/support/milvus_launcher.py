"""Become a Milvus server: `python milvus_launcher.py DIRECTORY BINARIES`, with the package milvus 2.3.5.

The first start writes the server's configuration and `port` into the directory; later ones use them again. The
unpacked binaries are kept in the other directory, because unpacking takes seconds.
"""

import os
import sys
from pathlib import Path

import milvus

_SETTINGS = {
    "authorization_enabled": True,
    "log.level": "warn",
    # How long a killed server's services count as alive, after which a restarted one takes over.
    "common.session.ttl": "5",
}


def write_config(directory):
    config = milvus.MilvusServerConfig(data_dir=str(directory))
    for key, value in _SETTINGS.items():
        config.set(key, value)
    config.resolve()
    # The package silently takes another port where the default one is in use.
    (directory / "port").write_text(str(config.get("proxy_port")))


def main(directory, binaries):
    if not (directory / "port").exists():
        write_config(directory)
    milvus._initialize_data_files(str(binaries))
    executable = binaries / "bin" / "milvus"
    environment = os.environ | {
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": "9091",
        "MILVUS_RUN_DIR": str(directory / "run"),
        "LD_LIBRARY_PATH": str(executable.parent),
    }
    os.chdir(directory)
    os.execve(executable, [str(executable), "run", "standalone"], environment)


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:3]))
