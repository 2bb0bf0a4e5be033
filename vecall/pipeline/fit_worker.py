"""Process of a `fit` with `training.devices` above 1: `python -m vecall.pipeline.fit_worker`, started by the launcher.

It reads a `WorkerOrder` from the first line of stdin. It ends when stdin is closed: then the launcher has died.
"""

import logging
import os
import sys
import threading
from contextlib import ExitStack

from vecall import progress
from vecall.config import parse_config
from vecall.errors import VecallError
from vecall.pipeline.fit import fit
from vecall.pipeline.worker_events import EventSender
from vecall.pipeline.worker_order import WorkerError, WorkerOrder


def main() -> None:
    """Run this process's part of a fit; exit with 1 after an error."""
    order = WorkerOrder.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("vecall").setLevel(order.log_level)
    with ExitStack() as stack:
        if order.event_descriptor is not None:
            sender = EventSender(stack.enter_context(os.fdopen(order.event_descriptor, "wb", buffering=0)))
            logging.getLogger("vecall").addHandler(sender)
            stack.enter_context(progress.report_to(sender))
        try:
            fit(parse_config(order.config), order.run_dir, init=order.init)
        except VecallError as error:
            order.error_path.write_text(WorkerError.from_exception(error).model_dump_json(), encoding="utf-8")
            sys.exit(1)


def _exit_at_end_of_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: a lock of the buffer would be held when the process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
