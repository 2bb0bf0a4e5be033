"""A ranker that asks a ranking service over HTTP: candidates go out as JSON, scores come back. Needs `make quickstart`.

python examples/http_ranker.py [--store quickstart/store] [--user 1] [--url http://HOST:PORT/score]

Without --url a small service of this file answers. If the service fails or is late, the ranker raises, and recall's
order is what is shown.
"""

import argparse
import http.client
import json
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import polars as pl

from vecall import Query, open_recaller
from vecall.ranking.ranker import rank

COLUMNS = ("rank", "score", "item.popularity", "history.cosine_last")


class HttpRanker:
    """Scores candidates by a service that takes `{"candidates": {column: [values]}}` and returns `{"scores": [...]}`.

    Each thread keeps a connection of its own open.
    """

    def __init__(self, url: str, columns: tuple[str, ...], timeout_s: float = 0.05) -> None:
        self.url, self.columns, self.timeout_s = urlsplit(url), columns, timeout_s
        self.local = threading.local()

    def __call__(self, candidates: pl.DataFrame) -> list[float]:
        body = json.dumps({"candidates": candidates.select(self.columns).to_dict(as_series=False)})
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection(self.url.netloc, timeout=self.timeout_s)
        connection = self.local.connection
        try:
            connection.request("POST", self.url.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            raise
        if response.status != 200:
            raise RuntimeError(f"{self.url.geturl()} answered {response.status}: {content[:200]!r}")
        return json.loads(content)["scores"]


class PopularFirst(BaseHTTPRequestHandler):
    """A ranking service: the score of recall, and a little for popularity."""

    protocol_version = "HTTP/1.1"  # connections stay open

    def do_POST(self) -> None:
        candidates = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["candidates"]
        pairs = zip(candidates["score"], candidates["item.popularity"], strict=True)
        content = json.dumps({"scores": [score + 0.001 * (popularity or 0) for score, popularity in pairs]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        del args


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="quickstart/store")
    parser.add_argument("--user", default="1")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        url = arguments.url
        if url is None:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), PopularFirst))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/score"
        recaller = stack.enter_context(open_recaller(arguments.store))
        candidates = recaller.candidates(Query(user_id=recaller.parse_user_id(arguments.user), k=500))
        try:
            final = rank(candidates, HttpRanker(url, COLUMNS), k=10)
        except (OSError, RuntimeError) as error:
            print(f"recall's order: {error}")
            final = candidates.head(10)
    print(final.select("id", "rank"))


if __name__ == "__main__":
    main()
