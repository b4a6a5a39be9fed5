"""Log-probabilities: stored as columns, read as dicts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from forerun.text.detokenizer import decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.void]  # [tokens, entries] of token, logprob and rank


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability under the model alone, before any sampling option.

    Attributes:
        rank: its position among all tokens by probability, from 1.
        decoded_token: its text; None without a tokenizer or with detokenize=False.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class FlatLogprobs(Sequence[Any]):
    """The log-probabilities of a run of tokens, as a sequence of `dict[int, Logprob]`.

    It reads as a list of dicts and equals one, but stores 12 bytes for each entry and makes a dict
    when a position is read. The first token of a prompt has None: nothing predicts it. The columns
    have the names of vLLM's class of this name: `token_ids`, `logprobs`, `ranks` and
    `decoded_tokens` hold the entries of all positions, those of position i from `start_indices[i]`
    to `end_indices[i]`.
    """

    def __init__(self, token_bytes: Sequence[bytes], *, starts_with_none: bool = False) -> None:
        self._token_bytes = token_bytes  # empty: tokens have no text
        self._num_none = int(starts_with_none)
        self._chunks: list[Rows] = []
        self._ends: list[int] = []  # of the chunks, in positions without the one that is None

    def put_rows(self, begin: int, rows: Rows) -> None:
        """Puts a position for each row of entries, from row `begin` on, in place of what is there.

        REQUIRES: an earlier call's rows begin or end there. Doing it again changes nothing.
        """
        num_kept = bisect_right(self._ends, begin)
        del self._ends[num_kept:], self._chunks[num_kept:]
        if rows.shape[0]:
            self._chunks.append(rows)
            self._ends.append(begin + len(rows))

    @property
    def _num_rows(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        """The number of tokens."""
        return self._num_none + self._num_rows

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Any: ...
    def __getitem__(self, index: int | slice) -> Any:
        """The dict of one position, or the positions of a slice."""
        positions = range(len(self))[index]
        if isinstance(positions, int):
            return self._entries(positions)
        if positions.step != 1:
            return [self._entries(position) for position in positions]
        has_none = bool(positions) and positions.start < self._num_none
        part = FlatLogprobs(self._token_bytes, starts_with_none=has_none)
        start = max(positions.start - self._num_none, 0)
        stop = positions.stop - self._num_none
        for number in range(bisect_right(self._ends, start), len(self._chunks)):
            begin = self._ends[number] - len(self._chunks[number])
            if begin >= stop:
                break
            part.put_rows(
                part._num_rows, self._chunks[number][max(start - begin, 0) : stop - begin]
            )
        return part

    def __iter__(self) -> Iterator[Any]:
        """The positions in order."""
        return (self._entries(position) for position in range(len(self)))

    def _entries(self, position: int) -> dict[int, Logprob] | None:
        if position < self._num_none:
            return None
        return self.entries(self.rows(position))

    def rows(self, position: int) -> Rows:
        """The entries of a position as records of token, logprob and rank; none for None."""
        row = position - self._num_none
        number = bisect_right(self._ends, row)
        rows: Rows = self._chunks[number][row - self._ends[number]]
        return rows

    def entries(self, rows: Rows) -> dict[int, Logprob]:
        """What records say, by token."""
        records: list[tuple[int, float, int]] = rows.tolist()
        return {
            token: Logprob(logprob, rank, self._text(token)) for token, logprob, rank in records
        }

    def _text(self, token: int) -> str | None:
        return decode(self._token_bytes, [token]) if self._token_bytes else None

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence has equal dicts."""
        if not isinstance(other, list | FlatLogprobs):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[Any]) -> list[Any]:
        """A list of the positions of both."""
        return [*self, *other]

    def __radd__(self, other: Sequence[Any]) -> list[Any]:
        """A list of the positions of both."""
        return [*other, *self]

    def __repr__(self) -> str:
        """That of a list of dicts."""
        return repr(list(self))

    def of_tokens(self) -> list[float]:
        """The log-probability of each token itself, the first entry of its position."""
        return [value for chunk in self._chunks for value in chunk["logprob"][:, 0].tolist()]

    def _column(self, name: str) -> list[Any]:
        return [value for chunk in self._chunks for value in chunk[name].ravel().tolist()]

    @property
    def start_indices(self) -> list[int]:
        """Where the entries of each position begin."""
        return [0, *self.end_indices[:-1]] if len(self) else []

    @property
    def end_indices(self) -> list[int]:
        """Where the entries of each position end."""
        ends = [0] * self._num_none
        for chunk in self._chunks:
            ends += range(
                (ends[-1] if ends else 0) + chunk.shape[1],
                (ends[-1] if ends else 0) + chunk.size + 1,
                chunk.shape[1],
            )
        return ends

    @property
    def token_ids(self) -> list[int]:
        """The token of each entry."""
        return self._column("token")

    @property
    def logprobs(self) -> list[float]:
        """The log-probability of each entry."""
        return self._column("logprob")

    @property
    def ranks(self) -> list[int]:
        """The rank of each entry."""
        return self._column("rank")

    @property
    def decoded_tokens(self) -> list[str | None]:
        """The text of each entry's token."""
        return [self._text(token) for token in self.token_ids]
