"""Text generation for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from forerun import _core
from forerun.engine.async_streams import AsyncStream
from forerun.engine.loaded_model import LoadedModel
from forerun.engine.prompts import Prompt, deadline_after
from forerun.engine.requests import PreparedPrompt, check_room
from forerun.errors import (
    DeviceError,
    EngineBusyError,
    EngineClosedError,
    InternalError,
    InvalidArgumentError,
)
from forerun.outputs import RequestOutput
from forerun.sampling_params import SamplingParams
from forerun.util.checks import check_int, check_name
from forerun.vllm_fields.arguments import checked_methods

_FAILURE_SECONDS = 10.0  # then a probe lets requests come again, which try another step


class _Receiver(weakref.ref[AsyncStream]):
    """The stream of a completion; dead once the stream is dropped."""

    id: int
    index: int  # of the completion


@checked_methods
class AsyncLLM(LoadedModel):
    """An LLM for asyncio: a thread of its own runs the model, and sleeps when there is no request.

    Requests that run at the same time share the engine's steps. They belong to the event loop that
    runs when they are made; all unfinished ones belong to the same. Close it, or use it in an
    `async with` block.

    Args:
        model: what LLM takes.
        **options: what LLM takes.

    Raises:
        CheckpointError, InvalidArgumentError: as LLM does.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(model, options)
        self._process = os.getpid()
        self._failure: BaseException | None = None  # of the last step
        self._failed_at = 0.0  # by time.monotonic
        self._receivers: dict[int, _Receiver] = {}
        self._asyncio: asyncio.AbstractEventLoop | None = None  # that of unfinished requests
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop = _core.EngineLoop(self._engine, write_end)
        # Also called when the process exits.
        self._stop = weakref.finalize(self, _stop, self._loop, (self._read_end, write_end))

    async def generate(
        self,
        prompt: Prompt | PreparedPrompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> RequestOutput:
        """Generates for one prompt, with the `n` completions asked for. See `stream`.

        Cancelling the task cancels the request.
        """
        stream = self.stream(
            prompt,
            sampling_params,
            request_id=request_id,
            priority=priority,
            timeout=timeout,
        )
        return await stream.wait_output()

    def stream(
        self,
        prompt: Prompt | PreparedPrompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | _core.Deadline | None = None,
    ) -> AsyncStream:
        """Generates for one prompt: an asynchronous iterator of CompletionDelta, one a token.

        The deltas of a completion are the same with every speculative_config. The last of a request
        has its whole output. Closing the stream, leaving its `async with` block, cancelling the
        task that waits for it, or dropping it cancels the request.

        Args:
            prompt: as LLM.generate takes it, or one of `prepare`.
            sampling_params: None takes `get_default_sampling_params()`, or those of `prepare`.
            request_id: the output's; None is a number of the engine's.
            priority: with scheduling_policy="priority"; lower values run first.
            timeout: in seconds, from now on, or a Deadline made before. What is not finished then
                ends at the next step with DeadlineExceededError, after the deltas of the tokens
                so far.

        Raises:
            InvalidArgumentError: the prompt or the parameters can never be served.
            QueueFullError: as many requests wait as may.
            EngineBusyError: another event loop has unfinished requests, or the process was forked
                after the model was loaded.
            EngineClosedError: the AsyncLLM was closed.
            DeviceError: the GPU was lost in an earlier step.
        """
        if sampling_params is not None and not isinstance(sampling_params, SamplingParams):
            raise InvalidArgumentError(
                "sampling_params", sampling_params, "SamplingParams, or None"
            )
        if request_id is not None:
            check_name("request_id", request_id)
        deadline = deadline_after(timeout)
        self._check_open()
        request = self._request(
            self._prepared_alone(prompt, sampling_params),
            priority=check_int("priority", priority),
            deadline=deadline,
            request_id=request_id,
        )
        check_room(self._engine, len(request.completions), "n")
        self._attach()
        stream = AsyncStream(
            request, self._board, cancel=self._cancel, let_wait=self._loop.let_wait
        )
        try:
            for completion in request.completions:
                request.submit(self._engine, completion, self.limits.max_model_len)
                receiver = _Receiver(stream, functools.partial(_drop, self._receivers, self._loop))
                receiver.id, receiver.index = completion.id, completion.index
                self._receivers[completion.id] = receiver
        except BaseException:
            stream.close()
            raise
        finally:
            self._loop.wake()
        return stream

    def check_health(self) -> None:
        """Raises an error where requests cannot be served.

        Raises:
            EngineClosedError, EngineBusyError: as `stream` does.
            InternalError: the last step of the engine failed, whose message it has. Raised for
                10 s, unless a later step succeeds: a caller that sends no requests until then
                would not see it succeed. Raised from then on where the GPU is lost.
        """
        self._check_open()
        is_recent = time.monotonic() - self._failed_at < _FAILURE_SECONDS
        is_lost = isinstance(self._failure, DeviceError) and self._failure.is_lost
        if self._failure is not None and (is_recent or is_lost):
            kind = type(self._failure).__name__
            raise InternalError(f"the engine's last step failed: {kind}: {self._failure}")

    def prepare(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[PreparedPrompt]:
        """Tokenizes prompts and compiles their grammars, which may take long, for `stream`.

        Any thread may call it: other requests go on meanwhile.

        Args:
            prompts, sampling_params: what LLM.generate takes.

        Raises:
            InvalidArgumentError: a prompt or a parameter is wrong by itself; `stream` tells what
                the model or its vocabulary does not allow.
            EngineBusyError, EngineClosedError: as `stream` does.
        """
        self._check_open()
        return self._prepare(prompts, sampling_params)

    def check_room(self, num_completions: int) -> None:
        """Raises an error unless so many completions may be added now.

        Raises:
            InvalidArgumentError: they never may, all together.
            QueueFullError: as many requests wait as may.
            EngineBusyError, EngineClosedError: as `stream` does.
        """
        self._check_open()
        field = "num_completions"
        check_room(self._engine, check_int(field, num_completions, least=1), field)

    def _prepared_alone(
        self, prompt: Prompt | PreparedPrompt, params: SamplingParams | None
    ) -> PreparedPrompt:
        if isinstance(prompt, PreparedPrompt):
            if params is not None:
                raise InvalidArgumentError(
                    "sampling_params", params, "None beside a prompt of prepare, which has its own"
                )
            return prompt
        params = self.get_default_sampling_params() if params is None else params.clone()
        return self._prepared("prompt", prompt, params, self._grammar(params))

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise EngineBusyError(
                "the process was forked after the model was loaded; load the model in the child"
            )
        if not self._stop.alive:
            raise EngineClosedError("the AsyncLLM was closed")

    def _attach(self) -> None:
        """Reads what the engine does in the running event loop."""
        running = asyncio.get_running_loop()
        if self._asyncio is not None and self._asyncio.is_closed():
            self._cancel(list(self._receivers))  # nothing waits for these any more
            self._asyncio = None
        if self._asyncio is running:
            return
        if self._receivers:
            raise EngineBusyError("another event loop has unfinished requests")
        self._detach()
        running.add_reader(self._read_end, self._take)
        self._asyncio = running

    def _detach(self) -> None:
        # The child of a fork shares its parent's epoll, and must not take the reader out of it.
        is_parent = os.getpid() == self._process
        if is_parent and self._asyncio is not None and not self._asyncio.is_closed():
            self._asyncio.remove_reader(self._read_end)
        self._asyncio = None

    def _take(self) -> None:
        """Hands updates to their streams."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 1)
        updates, failure = self._loop.take()
        if self._failure is not None and any(update.new_tokens for update in updates):
            self._failure = None  # aborted requests need no model
        for update in updates:
            if update.finish_reason == _core.FinishReason.ABORT:
                continue  # cancelled by its stream, or by the failure below
            receiver = self._receivers.get(update.id)
            stream = receiver() if receiver is not None else None
            if receiver is None or stream is None:
                continue
            if update.finish_reason != _core.FinishReason.NONE:
                self._receivers.pop(update.id, None)
            try:
                stream.receive(receiver.index, update)
            except Exception as error:  # costs no other request its updates
                stream.fail(error)
        if failure is not None:
            self._failure, self._failed_at = _raised(failure), time.monotonic()
            receivers = list(self._receivers.values())
            self._fail(
                [each for each in receivers if each.id < failure.first_new_id], self._failure
            )
        if not self._receivers:
            self._detach()

    def _fail(self, receivers: list[_Receiver], error: BaseException) -> None:
        # All at once: no step begins for those that are not told yet.
        self._cancel([receiver.id for receiver in receivers])
        for receiver in receivers:
            stream = receiver()
            if stream is not None:
                stream.fail(error)

    def _cancel(self, ids: list[int]) -> None:
        ended = [id for id in ids if self._receivers.pop(id, None) is not None]
        if ended:
            self._loop.cancel(ended)

    async def aclose(self) -> None:
        """Ends unfinished requests with EngineClosedError, and waits for the end of the step."""
        self._end_streams()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """What `aclose` does, without an event loop that runs."""
        self._end_streams()
        self._stop()
        if self._memory is not None:
            self._memory.close()

    def _end_streams(self) -> None:
        error = EngineClosedError("the AsyncLLM was closed")
        self._fail(list(self._receivers.values()), error)
        if self._stop.alive:
            self._detach()

    async def __aenter__(self) -> AsyncLLM:
        """The AsyncLLM itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        await self.aclose()


def _raised(failure: _core.LoopFailure) -> BaseException:
    try:
        failure.reraise()
    except BaseException as error:
        return error
    raise InternalError("a step failed without an error")


def _drop(receivers: dict[int, _Receiver], loop: _core.EngineLoop, receiver: _Receiver) -> None:
    """Cancels the request of a stream that was dropped. Called in any thread, by any code."""
    if receivers.pop(receiver.id, None) is not None:
        loop.cancel([receiver.id])


def _stop(loop: _core.EngineLoop, file_descriptors: tuple[int, int]) -> None:
    """Stops the loop's thread; from that thread, where a collection of garbage may run, later."""
    if loop.is_current_thread():
        threading.Thread(target=_stop, args=(loop, file_descriptors)).start()
        return
    loop.stop()
    for file_descriptor in file_descriptors:
        os.close(file_descriptor)
