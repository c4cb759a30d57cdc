"""Sends requests of known lengths to an engine and remembers what came back."""

import http.client
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.engine_accuracy.servers import Server
from benchmarks.engine_accuracy.truth import WORDS


@dataclass(frozen=True, slots=True)
class Request:
    """One request: a prompt of token numbers, and how many tokens to answer."""

    prompt: tuple[int, ...]
    answer: int
    copies: int = 1
    # Hang up after this many seconds; None: wait for the answer.
    abort_after_seconds: float | None = None
    # Ask for the prompt's embedding instead of an answer.
    embedding: bool = False


@dataclass(slots=True)
class Sent:
    """What was asked and answered so far; positions of each sequence by the start of its name."""

    lengths: dict[str, int] = field(default_factory=dict)
    # Those whose client hung up; their lengths are of what it had received by then.
    aborted: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Prompts:
    """Makes prompts; each has different tokens, so that no cache contains it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def fresh(self, length: int) -> tuple[int, ...]:
        """A prompt that shares nothing with any other."""
        return tuple(self._random.randrange(3, WORDS) for _ in range(length))


def send_all(server: Server, requests: Sequence[Request], sent: Sent, workers: int) -> None:
    """Send all requests, `workers` at a time, and wait for the answers."""
    queue = list(reversed(requests))

    def work() -> None:
        while True:
            with sent.lock:
                if not queue:
                    return
                request = queue.pop()
            _send(server, request, sent)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def send_for(server: Server, make: "Maker", sent: Sent, *, workers: int, seconds: float) -> None:
    """Keep `workers` requests in flight for this long, and wait for the last ones."""
    end = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < end:
            with sent.lock:
                request = make()
            _send(server, request, sent)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Maker:
    """Makes requests of random lengths."""

    def __init__(self, seed: int, prompts: tuple[int, int], answers: tuple[int, int]) -> None:
        self._random = random.Random(seed)
        self._prompts = Prompts(seed)
        self._lengths, self._answers = prompts, answers

    def __call__(self) -> Request:
        length = self._random.randint(*self._lengths)
        return Request(self._prompts.fresh(length), self._random.randint(*self._answers))


def _send(server: Server, request: Request, sent: Sent) -> None:
    body = {
        "model": server.model,
        "prompt": list(request.prompt),
        "max_tokens": request.answer,
        "n": request.copies,
        "ignore_eos": True,
        "detokenize": False,
        "seed": 1 if request.copies == 1 else None,
        "temperature": 0.0 if request.copies == 1 else 1.0,
    }
    if request.abort_after_seconds is not None:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    path = "/v1/completions"
    if request.embedding:
        path, body = "/v1/embeddings", {"model": server.model, "input": list(request.prompt)}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        if request.abort_after_seconds is not None:
            _read_until(connection.getresponse(), request, sent)
            return
        answer = json.loads(connection.getresponse().read())
        length = len(request.prompt) + max(0, request.answer - 1)
        with sent.lock:
            sent.lengths[answer["id"]] = length
            for copy in range(request.copies):
                sent.lengths[f"{copy}_{answer['id']}"] = length
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        with sent.lock:
            sent.failures.append(f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def _read_until(answer: http.client.HTTPResponse, request: Request, sent: Sent) -> None:
    """Read a stream for the request's time; its length is what the client received by then."""
    assert request.abort_after_seconds is not None
    end = time.monotonic() + request.abort_after_seconds
    while time.monotonic() < end:
        line = answer.readline()
        if not line:
            raise ValueError("the answer ended before the client hung up")
        if not line.startswith(b"data: {"):
            continue
        part = json.loads(line.removeprefix(b"data: "))
        delivered = part["usage"]["completion_tokens"]
        with sent.lock:
            sent.aborted.add(part["id"])
            sent.lengths[part["id"]] = len(request.prompt) + max(0, delivered - 1)
