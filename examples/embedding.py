"""A server inside of a larger program: the main thread learns, handlers ask what it has learned so far.

    python examples/embedding.py                    # on 127.0.0.1:8000; as arguments other addresses

    curl http://127.0.0.1:8000/predict -d '{"text": "win a cheap watch"}'
    curl -i http://127.0.0.1:8000/learn -d '{"text": "lunch on friday?", "label": "ham"}'

The model is naive Bayes over words, in plain Python. It never changes: whoever has learned something puts another one
in its place, and so no handler needs a lock.
"""

import math
import re
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from queue import SimpleQueue

from fastserve import BadRequest, RequestCtx, Router, Server

LESSONS = [("spam", "win a prize now"), ("spam", "cheap watches, buy now"), ("spam", "win cheap money now"),
           ("ham", "lunch at noon"), ("ham", "the meeting is at noon"), ("ham", "notes of the meeting")]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True, slots=True)
class Model:
    texts: Counter[str] = field(default_factory=Counter[str])  # of each label
    words: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])  # each word in those of a label

    def learned(self, label: str, text: str) -> "Model":
        return Model(self.texts + Counter([label]), self.words + Counter((label, word) for word in words_of(text)))

    def predict(self, text: str) -> dict[str, float]:
        """The probability of each label by Bayes' rule, every word counted once more than it was seen."""
        known = {word for _, word in self.words}
        scores: dict[str, float] = {}
        for label, count in self.texts.items():
            total = len(known) + sum(times for (of, _), times in self.words.items() if of == label)
            scores[label] = math.log(count) + sum(
                math.log((self.words[label, word] + 1) / total) for word in words_of(text) if word in known)
        weights = {label: math.exp(score - max(scores.values())) for label, score in scores.items()}
        return {label: weight / sum(weights.values()) for label, weight in weights.items()}


class Service:
    """What handlers know: the model as it is now, and where lessons go."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.lessons: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self.router = Router()
        self.router.post("/predict", self.predict)
        self.router.post("/learn", self.learn)

    def predict(self, ctx: RequestCtx) -> None:
        match ctx.json():
            case {"text": str(text)}:
                ctx.write_json(self.model.predict(text))
            case _:
                raise BadRequest("text must be a string")

    def learn(self, ctx: RequestCtx) -> None:
        match ctx.json():
            case {"text": str(text), "label": ("spam" | "ham") as label}:
                self.lessons.put((label, text))
                ctx.status = 202
            case _:
                raise BadRequest("text must be a string, label must be spam or ham")


def main() -> None:
    model = Model()
    for label, text in LESSONS:
        model = model.learned(label, text)
    service = Service(model)
    # Unlike `serve`, `start` leaves signals to the program. A signal handler may put into this queue.
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda number, frame: service.lessons.put(None))
    with Server(service.router, max_request_body_size=64 * 1024).start(*sys.argv[1:]) as server:
        print(f"http://{server.addresses[0]}", flush=True)
        for label, text in iter(service.lessons.get, None):
            service.model = service.model.learned(label, text)
    # Here the server has been shut down, whatever has ended the loop: who was being served has a reply.
    print(f"{server.stats()['requests']} requests, {service.model.texts.total() - len(LESSONS)} lessons")


if __name__ == "__main__":
    main()
