"""Runs the engine for several callers and delivers what each step did."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from forerun import _core
from forerun.engine.requests import Completion, Request, check_room
from forerun.errors import InternalError, InvalidArgumentError
from forerun.prompt_histograms import PromptHistograms
from forerun.text.turns import make_turns

_LOGGER = logging.getLogger("forerun")


class _Listener(weakref.ref[Request]):
    """The receiver of a completion's updates; dead once the request is dropped."""

    id: int
    index: int  # of the completion


class Scoreboard:
    """Runs an engine's steps and hands each update to its request.

    Several callers, in one thread or in many, may have requests in the engine at once, such as an
    open stream and a call of generate: whichever of them steps, every request gets its updates.

    An exception of a signal handler may end any method between two bytecodes. So an update is not
    forgotten before it was taken, taking it twice changes nothing, and a request whose id was lost
    is cancelled when it is seen.
    """

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        bounds = engine.metrics().histograms.request_generation_tokens.bounds
        self.prompt_histograms = PromptHistograms.empty(bounds)
        self._turns = make_turns()
        self._listeners: dict[int, _Listener] = {}
        self._gone: deque[_Listener] = deque()  # cancelled or dead, not yet in the engine
        self._is_delivered = True  # the last step's updates
        self._is_failure_logged = False

    @property
    def turn(self) -> _core.Turns:
        """What a thread enters to have the engine for itself; see EngineBusyError."""
        return self._turns

    def submit(self, requests: Sequence[Request], max_model_len: int) -> None:
        """Submits all or, where one can never be served or the queue is full, none."""
        # The first completion of every prompt first: the others find the prompt in the cache.
        every = [
            (request, completion) for request in requests for completion in request.completions
        ]
        every.sort(key=lambda pair: pair[1].index)
        try:
            with self._turns:
                self._catch_up()
                check_room(self._engine, len(every), "n" if len(requests) == 1 else "prompts")
                for request, completion in every:
                    self._submit(request, completion, max_model_len, is_alone=len(requests) == 1)
        except BaseException:
            self.cancel(requests)
            raise

    def _submit(
        self, request: Request, completion: Completion, max_model_len: int, *, is_alone: bool
    ) -> None:
        try:
            request.submit(self._engine, completion, max_model_len)
        except InvalidArgumentError as error:
            if is_alone:
                raise
            raise type(error)(
                f"prompts[{request.index}]: {error.field}", error.value, error.expected
            ) from error
        listener = _Listener(request, self._gone.append)
        listener.id, listener.index = completion.id, completion.index
        self._listeners[completion.id] = listener

    def run_until(self, look: Callable[[], bool]) -> None:
        """Steps until `look()`; other threads have their turns between the steps."""
        done = False
        while not done:
            with self._turns:
                self._catch_up()
                done = look()
                if not done:
                    self.step()
                    done = look()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Ends requests whose caller no longer listens. May be called at any time."""
        ids = [completion.id for request in requests for completion in request.completions]
        self._gone.extend([self._listeners[id] for id in ids if id in self._listeners])

    def run_step(self) -> None:
        """Runs one step, if there is work, in this thread's turn."""
        with self._turns:
            self._catch_up()
            if self._engine.has_unfinished():
                self.step()

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes; False while a request is unfinished."""
        with self._turns:
            self._settle()
            return self._engine.reset_prefix_cache()

    def _settle(self) -> None:
        self._catch_up()
        while not self._listeners and self._engine.has_unfinished():
            self.step()  # the engine removes cancelled requests in a step

    def reset_caches(self) -> None:
        """Forgets cached prefixes and past outputs. No request may be unfinished."""
        with self._turns:
            self._settle()
            if self._engine.has_unfinished():
                raise InvalidArgumentError(
                    "reset_caches", "an open request", "no unfinished stream or call of generate"
                )
            self._engine.reset_caches()

    def step(self) -> None:
        """Runs one step and delivers its updates. REQUIRES: it is this thread's turn."""
        if not self._engine.has_unfinished():
            raise InternalError("a caller waits for an update, and no request is unfinished")
        self._is_delivered = False
        self._engine.step()
        self._deliver()

    def _catch_up(self) -> None:
        """Cancels and delivers what an interrupted turn, or a caller out of turn, left."""
        while self._gone:
            listener = self._gone[0]
            if self._listeners.get(listener.id) is listener:
                self._engine.cancel(listener.id)
                del self._listeners[listener.id]
            self._gone.popleft()
        self._deliver()

    def _deliver(self) -> None:
        if self._is_delivered:
            return
        for update in self._engine.updates():
            listener = self._listeners.get(update.id)
            request = listener() if listener is not None else None
            if listener is None or request is None:
                self._engine.cancel(update.id)  # no effect unless its submission was interrupted
                continue
            completion = request.completions[listener.index]
            self.record(request, completion, update)
            if completion.output is not None:
                self._listeners.pop(update.id, None)
        self._is_delivered = True

    def record(self, request: Request, completion: Completion, update: _core.RequestUpdate) -> None:
        """Adds an update to its request, and a finished request to the histograms."""
        request.take(completion, update)
        if request.output is not None:
            num_tokens = [len(each.token_ids) for each in request.completions]
            self.prompt_histograms = self.prompt_histograms.observe(
                request.completions[0].id, num_tokens
            )
        if completion.output is not None:
            self._log_drafting_failure()

    def _log_drafting_failure(self) -> None:
        """Logs the first one, once per engine. Called for finished requests: metrics are a copy."""
        if self._is_failure_logged:
            return
        metrics = self._engine.metrics()
        if metrics.num_drafting_failures > 0:
            self._is_failure_logged = True
            message = "The drafter failed; its requests go on without drafts: %s"
            _LOGGER.warning(message, metrics.first_drafting_failure)
