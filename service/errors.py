"""What can go wrong between a client and a server, in the words that the user reads."""

from __future__ import annotations


class ServiceError(RuntimeError):
    """The server could not be started, or a request failed; the message says which and what to do."""


class ServerStartError(ServiceError):
    """The server did not start; the message says why."""


class AccessError(ServiceError, ValueError):
    """A server cannot be spoken to in the way asked for; the message says what is wrong with it."""


class EventRefusedError(ServiceError, ValueError):
    """The event breaks the contract or is over the model's limits; the message names it and says how."""


class UnavailableError(ServiceError):
    """The server cannot be reached, is going down, or lacks the model."""


class ModelNotFoundError(UnavailableError):
    """The server has no such model loaded; the message names those that it has."""


class RequestTimeoutError(ServiceError):
    """The server did not answer in time."""


class NoMemoryError(UnavailableError):
    """The server is there, and had no memory for this event at any attempt."""


class MismatchError(ServiceError):
    """The server speaks another version of the contract than this client, or its model is not one that finds tracks."""


OF_ONE_EVENT = (EventRefusedError, RequestTimeoutError, NoMemoryError)
"""What a request can fail with whose next may well be answered."""
