"""Watched by Prometheus: the server's own metrics, which need no Python to be answered, and the program's beside them.

    pip install prometheus_client
    python examples/prometheus.py                   # on 127.0.0.1:8000; as arguments other addresses

    curl -i -X POST http://127.0.0.1:8000/orders/tea
    curl http://127.0.0.1:8000/metrics              # connections, requests, time in the queue and in handlers ...
    curl http://127.0.0.1:8000/metrics/shop         # what was ordered

Prometheus asks for both: two entries of `scrape_configs` with the same target and another `metrics_path`.
"""

import sys

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest

from fastserve import BadRequest, RequestCtx, Router, Server

PRICES = {"tea": 3.0, "coffee": 4.0, "cake": 5.5}

ORDERS = Counter("shop_orders", "Orders that were taken", ["product"])
ITEMS = Histogram("shop_items", "Items of one order", buckets=(1, 2, 5, 10, 100))

router = Router()


@router.post("/orders/{product}")
def order(ctx: RequestCtx) -> None:
    product = ctx.params["product"]
    # A label is one of few: whoever makes one of what a client sends gives memory away.
    if product not in PRICES:
        raise BadRequest("there is no such product", 404)
    count = ctx.query.int("count", 1)
    if not 1 <= count <= 100:
        raise BadRequest("count must lie in 1..100")
    ORDERS.labels(product).inc()
    ITEMS.observe(count)
    ctx.status = 201
    ctx.write_json({"product": product, "count": count, "price": count * PRICES[product]})


@router.get("/metrics/shop")
def metrics(ctx: RequestCtx) -> None:
    ctx.content_type = CONTENT_TYPE_LATEST
    ctx.write(generate_latest())


if __name__ == "__main__":
    server = Server(router, metrics_path="/metrics", health_path="/health")
    server.serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
