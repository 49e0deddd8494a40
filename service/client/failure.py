"""Why a client's command gave up, in words for whoever typed it."""


class ClientMistake(Exception):
    """The command line or a file it names is wrong; nothing was asked."""


class RequestFailed(Exception):
    """The server cannot be reached, refused, or broke off."""
