"""llama.cpp and what is derived from it, by the programs of its own build; used by run.py.

llama-bench and llama-batched-bench draw token ids of their own, as many as are asked for, and load
the model anew for every measurement. llama-server, where the build has it, gets the texts.
"""

from __future__ import annotations

import atexit
import json
import shlex
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_SECONDS_TO_LOAD = 60


class LlamaTools:
    """A folder of programs and a model.

    Args:
        programs: the folder.
        model: a .gguf file, and arguments that all programs get, as in "m.gguf -rtr 1".
        server_arguments: of llama-server, as in "--spec-type ngram-mod"; None: no texts.
    """

    def __init__(
        self, programs: str, model: str, num_threads: int, server_arguments: str | None
    ) -> None:
        self.programs = Path(programs).absolute()
        file, *self.arguments = shlex.split(model)
        self.folder = tempfile.TemporaryDirectory()  # some programs write a log where they run
        self.common = ["-m", str(Path(file).absolute()), "-t", str(num_threads)]
        help_text = self._run("llama-bench", "--help")
        self.has_depth = "--n-depth" in help_text
        self.server: _Server | None = None
        if server_arguments is not None:
            command = [str(self.programs / "llama-server"), *self.common]
            self.server = _Server(command + self.arguments + shlex.split(server_arguments))

    def _run(self, program: str, *arguments: str) -> str:
        result = subprocess.run(
            [str(self.programs / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder.name,
        )
        if result.returncode != 0 and "--help" not in arguments:
            raise SystemExit(f"{' '.join(map(str, result.args))}:\n{result.stderr[-2000:]}")
        return result.stdout if program == "llama-bench" else result.stdout + result.stderr

    def decode(self, num_context: int, num_tokens: int) -> dict[str, float]:
        """Tokens/s after a context of so many tokens."""
        if self.has_depth:
            arguments = ["-p", "0", "-n", str(num_tokens), "-d", str(num_context)]
        else:
            arguments = ["-p", "0", "-n", "0", "-gp", f"{num_context},{num_tokens}"]
        return {"tokens_per_second": self._bench(arguments)}

    def prompt(self, num_tokens: int) -> dict[str, float]:
        """Tokens/s of a prompt."""
        return {"tokens_per_second": self._bench(["-p", str(num_tokens), "-n", "0"])}

    def _bench(self, arguments: list[str]) -> float:
        output = self._run(
            "llama-bench", *self.common, *self.arguments, *arguments, "-r", "1", "-o", "json"
        )
        return float(json.loads(output)[-1]["avg_ts"])

    def chats(self, num_chats: int, num_prompt: int, num_tokens: int) -> dict[str, float]:
        """Chats at once: their tokens over all seconds, and the seconds of a step of all."""
        # The arguments of llama-bench have values ("-rtr 1") where these are switches.
        switches = [argument for argument in self.arguments if argument.startswith("-")]
        # Contexts are rounded to multiples of 256.
        context = num_chats * -(-(num_prompt + num_tokens) // 256) * 256
        sizes = {"-c": context, "-b": 2048, "-ub": 512}
        sizes |= {"-npp": num_prompt, "-ntg": num_tokens, "-npl": num_chats}
        options = [str(word) for option in sizes.items() for word in option]
        output = self._run("llama-batched-bench", *self.common, *switches, *options)
        # A table of ten columns: the fifth and the seventh are seconds, of prompts and of tokens.
        rows = [line.strip("|").split("|") for line in output.splitlines() if line.count("|") == 11]
        prompt_seconds, seconds = float(rows[-1][4]), float(rows[-1][6])
        return {
            "tokens_per_second": num_chats * num_tokens / (prompt_seconds + seconds),
            "step_seconds": seconds / num_tokens,
        }

    def text(self, ids: list[int], num_tokens: int) -> dict[str, float] | None:
        """Tokens/s of an answer to a prompt, as the server measures it."""
        return self.server.answer(ids, num_tokens) if self.server else None


class _Server:
    """A llama-server that answers one request at a time."""

    def __init__(self, command: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.TemporaryDirectory()
        arguments = ["-c", "4096", "-np", "1", "--host", "127.0.0.1", "--port", str(port)]
        log = Path(self.log.name, "log")
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command + arguments, stdout=file, stderr=subprocess.STDOUT
            )
        atexit.register(self.close)
        end = time.monotonic() + _SECONDS_TO_LOAD
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)}:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health") as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def answer(self, ids: list[int], num_tokens: int) -> dict[str, float]:
        """Greedy, without what it has kept of an earlier prompt."""
        body: dict[str, Any] = {"prompt": ids, "n_predict": num_tokens, "temperature": 0}
        body |= {"ignore_eos": True, "cache_prompt": False, "samplers": ["top_k"], "top_k": 1}
        request = urllib.request.Request(
            f"{self.url}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            timings = json.load(response)["timings"]
        return {"tokens_per_second": float(timings["predicted_per_second"])}

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self.log.cleanup()
