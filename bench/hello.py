"""The application of a user who wants to see it run: fastserve hello:hello."""


def hello(ctx):
    ctx.content_type = "text/plain; charset=utf-8"
    ctx.write("Hello, World!\n")
