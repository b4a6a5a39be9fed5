"""The exceptions that Forerun raises."""


class ForerunError(Exception):
    """The base of every exception that Forerun raises on purpose."""


class InvalidArgumentError(ForerunError, ValueError):
    """The caller's mistake in a config, an option or a request.

    Attributes:
        field: the name of what is wrong.
        value: what was given, as text.
        expected: what would be valid.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = value if isinstance(value, str) else repr(value)
        self.expected = expected

    def __str__(self) -> str:
        text = f"{self.field}: got {self.value}; expected {self.expected}"
        # What was given may hold lone surrogates; the message can always be printed.
        return text.encode("utf-8", "backslashreplace").decode()


class CheckpointError(InvalidArgumentError):
    """A model directory or file that is missing, damaged, or of a kind that is not understood."""


class InternalError(ForerunError, RuntimeError):
    """A broken invariant of the engine: a bug of Forerun's, never the caller's."""
