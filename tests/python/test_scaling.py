"""Replicas: the example for Ray Serve on a local Ray, and the manifest for Kubernetes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from forerun import LLM, SamplingParams
from forerun.server.auth import OPEN_PATHS
from forerun.tools import cli
from forerun.tools.cli_serve import engine_options_of, settings_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "ray_serve.py"
MANIFEST = ROOT / "examples" / "kubernetes.yaml"


class Response(NamedTuple):
    replica: str
    body: str


class Cluster:
    """The example, running with two replicas."""

    def __init__(self, model: Path, port: int) -> None:
        self.model, self.url = str(model), f"http://127.0.0.1:{port}"

    def open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        return urllib.request.urlopen(request, timeout=60)

    def chat(self, messages: list[dict[str, str]], **options: Any) -> Response:
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": 24,
            "ignore_eos": True,
        }
        with self.open("/v1/chat/completions", {**body, **options}) as response:
            return Response(response.headers["x-replica"], response.read().decode())

    def sum_of(self, metric: str) -> float:
        """A metric, summed over the replicas. One of them answers, in no order."""
        pages: dict[str, str] = {}
        while len(pages) < 2:
            with self.open("/metrics") as response:
                pages[response.headers["x-replica"]] = response.read().decode()
        lines = itertools.chain.from_iterable(page.splitlines() for page in pages.values())
        return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


@pytest.fixture(scope="module")
def cluster(smollm_dir: Path) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (pip install 'ray[serve]')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, EXAMPLE, smollm_dir, "--port", str(port), "--max-num-seqs", "4"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "is ready at" in line:
                break
        assert process.poll() is None, "".join(lines)
        # What is logged later must not fill the pipe.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        reader.start()
        yield Cluster(smollm_dir, port)
        process.terminate()
        reader.join()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.long
def test_a_conversation_stays_on_its_replica(cluster: Cluster) -> None:
    replicas = []
    for number in range(12):
        messages = [{"role": "system", "content": "brief"}, user(f"question {number} " * 8)]
        first = cluster.chat(messages)
        answer = json.loads(first.body)["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": answer}, user("and then?")]
        second = cluster.chat(messages)
        assert second.replica == first.replica
        usage = json.loads(second.body)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0
        replicas.append(first.replica)
    assert len(set(replicas)) == 2


@pytest.mark.long
def test_both_replicas_generate_what_one_process_does(cluster: Cluster, smollm_dir: Path) -> None:
    llm = LLM(smollm_dir)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    for number in range(8):
        messages = [user(f"{number}{number}")]
        expected = llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text
        whole = json.loads(cluster.chat(messages).body)
        assert whole["choices"][0]["message"]["content"] == expected
        events = cluster.chat(messages, stream=True).body.split("\n\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert events[-2:] == ["data: [DONE]", ""]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == expected


@pytest.mark.long
def test_a_request_ends_when_its_client_leaves(cluster: Cluster) -> None:
    before = cluster.sum_of("vllm:generation_tokens_total")
    options = {"max_tokens": 2000, "ignore_eos": True, "stream": True}
    body = {"model": cluster.model, "messages": [user("long")], **options}
    for _ in range(3):
        with cluster.open("/v1/chat/completions", body) as stream:
            assert stream.readline().startswith(b"data: ")
    end = time.monotonic() + 30
    while cluster.sum_of("vllm:num_requests_running") > 0:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert cluster.sum_of("vllm:generation_tokens_total") - before < 3 * 2000


@pytest.mark.long
def test_what_a_replica_has_no_room_for_goes_to_the_other(cluster: Cluster) -> None:
    results: list[Response] = []

    def ask() -> None:
        results.append(cluster.chat([user("the same")], max_tokens=64))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        len({json.loads(result.body)["choices"][0]["message"]["content"] for result in results})
        == 1
    )
    assert len({result.replica for result in results}) == 2


@pytest.mark.long
def test_a_bad_request_gets_the_answer_of_a_replica(cluster: Cluster) -> None:
    for body in ({"messages": "none"}, {"messages": [user("a")], "temperature": -1}):
        with pytest.raises(urllib.error.HTTPError) as error:
            cluster.open("/v1/chat/completions", {"model": cluster.model, **body})
        assert error.value.code == 400
        assert json.load(error.value)["error"]["param"] in ("messages", "temperature")


def manifest() -> tuple[Any, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    service, replicas = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    return service, replicas["spec"]


def test_the_parts_of_the_manifest_name_each_other() -> None:
    service, replicas = manifest()
    pod = replicas["template"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert replicas["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert replicas["serviceName"] == service["metadata"]["name"]
    (port,), (offered,) = container["ports"], service["spec"]["ports"]
    assert offered["targetPort"] == port["name"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in replicas["volumeClaimTemplates"]}
    assert mounted == claimed | {volume["name"] for volume in pod["spec"]["volumes"]}


def test_prometheus_finds_the_pods_and_has_the_key() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["scrape_configs"]
    assert "credentials_file" in job["authorization"]
    pod = manifest()[1]["template"]
    assert "annotations" not in pod["metadata"], "they cannot give the key"
    (port,) = pod["spec"]["containers"][0]["ports"]
    (rule,) = job["relabel_configs"]
    assert rule["source_labels"][0] == "__meta_kubernetes_pod_label_app"
    assert rule["regex"] == f"{pod['metadata']['labels']['app']};{port['name']}"


def test_the_manifest_starts_a_server_that_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, replicas = manifest()
    pod = replicas["template"]["spec"]
    (container,) = pod["containers"]
    (key,) = container["env"]
    monkeypatch.setenv(key["name"], "secret")
    program, *command = container["command"]
    options = cli._parser().parse_args([*command, *container["args"]])
    settings, engine = settings_of(options), engine_options_of(options)
    assert program == "forerun"
    assert settings.api_keys == ("secret",)
    assert settings.host == "0.0.0.0"
    assert settings.port == container["ports"][0]["containerPort"]
    # Requests may end before the kubelet kills the process.
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause + settings.drain_seconds < pod["terminationGracePeriodSeconds"]
    resources = container["resources"]
    assert engine["num_threads"] == int(resources["limits"]["cpu"])
    assert resources["limits"] == resources["requests"]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    for used in (options.model, engine["suffix_memory"]):
        assert any(used.startswith(path + "/") for path in paths)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {
            "path": "/health",
            "port": container["ports"][0]["name"],
        }
    assert "/health" in OPEN_PATHS
