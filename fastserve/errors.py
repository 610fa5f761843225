"""The errors that a program may catch, and nothing else.

Knows: which errors exist and when each is raised. Never sees: a request, a socket or a setting.
Invariant: every error that fastserve itself raises on purpose is a `FastserveError`, except that a
wrong argument is the TypeError or ValueError that Python programmers expect.
"""

__all__ = ["ContextExpired", "FastserveError", "MissingExtra", "ServerClosed", "StartError"]


class FastserveError(Exception):
    """The base of all errors below; never raised itself."""


class ContextExpired(FastserveError, RuntimeError):
    """A `RequestCtx`, or a view of one (headers, args, body), was used after its handler had returned.

    What a handler took from it before (`bytes`, `str`) is its own and stays valid.
    """


class MissingExtra(FastserveError, ImportError):
    """Something was used that needs a library which is not installed.

    The message names the extra that brings it: `pip install 'fastserve-http[forms]'`.
    """


class ServerClosed(FastserveError):
    """The server was asked for something that only a running one can do, after it had been shut down.

    Also raised in the child of a fork, where every server of the parent counts as shut down.
    """


class StartError(FastserveError):
    """The server cannot start: an address is taken or forbidden, a resource is missing.

    The message is one line that a person can act on; no listener stays open. The command line prints
    it and exits with status 3.
    """
