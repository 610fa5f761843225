"""The errors that a program may catch, and nothing else.

Knows: which errors exist and when each is raised. Never sees: a request, a socket or a setting.
Invariant: every error that fastserve itself raises on purpose is a `FastserveError`, except that a
wrong argument is the TypeError or ValueError that Python programmers expect.
"""

__all__ = ["BadRequest", "ClientGone", "ContextExpired", "FastserveError", "MissingExtra", "ServerClosed", "StartError"]


class FastserveError(Exception):
    """The base of all errors below; never raised itself."""


class BadRequest(FastserveError):
    """The client is to blame: of everything that a handler may raise, this alone is not a 500.

    The reply is `status` (400 unless given) with the message, or without one its reason phrase, as plain
    text; nothing is logged. The server raises it itself when a body that a handler reads is malformed
    (400), late (408) or too large (413), and gives one to `error_handler`.
    """

    def __init__(self, message: str = "", status: int = 400) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"the status of an error lies in 400..599, not {status}")
        super().__init__(message)
        self.status = status


class ClientGone(FastserveError, ConnectionError):
    """The client went away, or read or sent too slowly, while a handler streamed to it or read from it.

    A handler that lets it pass ends its connection; nothing is logged.
    """


class ContextExpired(FastserveError, RuntimeError):
    """A `RequestCtx`, a view of it (headers, body stream) or a file of its form was used after its handler had
    returned.

    What a handler took from it before (`bytes`, `str`) is its own and stays valid.
    """


class MissingExtra(FastserveError, ImportError):
    """Something was used that needs a library which is not installed.

    The message names the extra that brings it: `pip install 'fastserve-http[forms]'`.
    """


class ServerClosed(FastserveError):
    """The server was asked for something that only one can do that was started, before that; or in the child of a
    fork, where no server of the parent is one.
    """


class StartError(FastserveError):
    """The server cannot start: an address is taken or forbidden, a resource is missing.

    The message is one line that a person can act on; no listener stays open. The command line prints
    it and exits with status 3.
    """
