"""A run on TRL that loses a process or its vLLM server: it ends with one line, and the next run goes on."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trl_runs import COMMAND, RUN, begin, child, finish, free_port, launcher, needs_trl, wait_until

from vine_mini import models
from vine_mini.app.files import read_rows
from vine_mini.integrations import trl
from vine_mini.integrations.trl import __main__ as command
from vine_mini.integrations.trl import lost
from vine_mini.types import UserError

FAILS = '''"""The second process fails once: when the run has a checkpoint."""
import os
from pathlib import Path
from vine_mini.tasks import arithmetic
from vine_mini.tasks.arithmetic import *
def reward(problem, text):
    if os.environ.get("RANK") == "1" and Path("RUN/policy").exists() and not Path("RUN/failed").exists():
        Path("RUN/failed").touch()
        raise ZeroDivisionError("the grader fails")
    return arithmetic.reward(problem, text)
'''


@needs_trl
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it reads Linux's /proc")
@pytest.mark.parametrize("what", ["first", "second", "grader"])
def test_a_lost_process_ends_the_run_with_one_line_and_the_run_resumes(tmp_path, what):
    """The first process holds the lock of the run folder, so the run resumes after its death. The policy of the run is one that the other commands load."""
    run, log = tmp_path / "run", (tmp_path / "log").open("w+")
    (tmp_path / "fails.py").write_text(FAILS.replace("RUN", str(run)))
    task = ["--task", str(tmp_path / "fails.py"), "--policy", "arithmetic"] if what == "grader" else []
    process = begin([*launcher(), *COMMAND, *RUN, *task, "--iterations", "500", "--out", str(run)], log)
    try:
        wait_until((run / "policy").exists, process)
        if what != "grader":
            os.kill(child(process, rank=["first", "second"].index(what)), signal.SIGKILL)
        assert process.wait(60) != 0
    finally:
        process.kill()
    log.seek(0)
    written = log.read()
    [line] = [line for line in written.split("\n") if "ends: " in line]  # of the process that is left
    assert f"process {int(what == 'first')} ends: " in line and line.endswith(f"; go on with --resume {run}")
    assert written.count("ZeroDivisionError: the grader fails") == (what == "grader")
    done = read_rows(run / "metrics.jsonl")[-1]["iteration"]
    saved = json.loads((run / "policy" / "trainer_state.json").read_text())["global_step"]
    assert 1 <= saved <= done <= saved + 1
    if what != "first":
        return
    ended = finish([*launcher(), *COMMAND, "--resume", str(run), "--iterations", str(saved + 2)])
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = read_rows(run / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, saved + 3))
    assert {"reward", "length", "truncated", "kl", "rollouts", "seconds_rollouts"} <= rows[-1].keys()
    assert (run / "curves.png").exists() and read_rows(run / "samples.jsonl")[-1]["iteration"] == saved + 2
    assert models.load_policy(str(run / "policy"), "cpu")


@needs_trl
@pytest.mark.slow
def test_a_process_that_waits_for_a_stopped_one_hears_sigterm(tmp_path):
    """No launcher: it would kill the stopped process only after half a minute."""
    run, log, port = tmp_path / "run", (tmp_path / "log").open("w+"), free_port()
    shared = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    words = [sys.executable, *COMMAND, *RUN, "--iterations", "500", "--out", str(run)]
    first, second = (begin(words, log, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01")
    try:
        wait_until(lambda: len(read_rows(run / "metrics.jsonl")) > 1, first)
        second.send_signal(signal.SIGSTOP)
        time.sleep(2)  # now the first one waits for an answer of the second
        first.terminate()
        assert first.wait(5) == 1
    finally:
        first.kill()
        second.kill()
    log.seek(0)
    assert (
        f"process 0 ends: SIGTERM, which a launcher sends where another process was lost; go on with --resume {run}" in log.read()
    )


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "silent"])
def test_a_server_that_is_lost_in_the_middle_of_a_run_ends_it_and_the_run_resumes(tmp_path, number):
    """Two processes, TRL's own client, and a stand-in for the server."""
    run, log, servers = tmp_path / "run", (tmp_path / "log").open("w+"), []

    def serve() -> str:
        servers.append(begin([sys.executable, "tests/integrations/stub_server.py", port := free_port()], log))
        return f"http://127.0.0.1:{port}/"

    worker = [*launcher(), "tests/integrations/trl_server_worker.py"]
    process = begin([*worker, *RUN, "--iterations", "5000", "--vllm", serve(), "--out", str(run)], log)
    try:
        wait_until((run / "policy").exists, process)
        servers[0].send_signal(number)
        start = time.monotonic()
        assert process.wait(90) != 0
        seconds = time.monotonic() - start
        log.seek(0)
        lines = [line for line in log.read().split("\n") if line.startswith("process 0 ends: ")]
        assert len(lines) == 1 and lines[0].endswith(f"; go on with --resume {run}"), lines
        assert seconds < 60  # the limits are lower here; those of the package are tested below
        if number == signal.SIGSTOP:
            return
        saved = json.loads((run / "policy" / "trainer_state.json").read_text())["global_step"]
        again = [*launcher(), worker[-1], "--resume", str(run), "--vllm", serve(), "--iterations", str(saved + 2)]
        ended = finish(again)
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert [row["iteration"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, saved + 3))
        assert "/health" not in ended.stderr and "tensors" in ended.stdout
    finally:
        for each in (process, *servers):
            each.kill()


@contextmanager
def served(answers):
    """A server in a thread. -> its address. `answers` has the status and the text of each path; of others the status is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, text = answers.get(self.path.split("?")[0], (404, "Not Found"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET
        log_message = print

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def silent():
    """A server that takes connections and says nothing. -> its address"""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it listens, and nobody serves
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("kind, why", [(partial(served, {}), "HTTP Error 404: Not Found"), (silent, "timed out")])
def test_an_address_without_a_healthy_server_is_refused_in_one_line(monkeypatch, capsys, tmp_path, kind, why):
    monkeypatch.setattr(command, "check_trl", lambda: None)
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    monkeypatch.setattr(lost, "START_SECONDS", 0.1)
    monkeypatch.setattr(lost, "ANSWER_SECONDS", 0.2)
    with kind() as address:
        assert command.main(["--vllm", f"{address}/", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.split("\n")[-2] == (
        f"vine_mini.integrations.trl: no vLLM server at {address}: /health gives {why}; start `vllm serve`, or correct the address"
    )


def test_a_server_is_lost_after_three_failures_in_a_row(monkeypatch):
    monkeypatch.setattr(lost, "LOOK_SECONDS", 0.0)
    answers, asked, ended, over = ["", "late", "late", "", "late", "late", "late"], [], [], threading.Event()
    monkeypatch.setattr(lost, "trouble", lambda server: asked.append(server) or answers[len(asked) - 1])
    lost.watch("http://host", lambda why: ended.append(why) or over.set())
    assert over.wait(5) and len(asked) == len(answers)
    assert ended == ["the vLLM server at http://host is lost: /health gives late"]
    assert lost.FAILURES * (5.0 + lost.ANSWER_SECONDS) < 60


def test_a_healthy_server_has_no_trouble():
    with served({"/health": (200, "")}) as address:
        assert lost.trouble(address) == "" and lost.wait_for(address) is None
    assert "refused" in lost.trouble(address)
    assert command.TrlConfig(vllm="http://host:8000/").vllm == "http://host:8000"  # vLLM does not know //health


@needs_trl
@pytest.mark.parametrize(
    "answers, device, message",
    [
        ({}, "cuda", "VLLM_SERVER_DEV_MODE=1"),
        ({"/server_info": (200, '{"vllm_config": {"weight_transfer_config": null}}')}, "cuda", "--weight-transfer-config"),
        (
            {
                "/server_info": (200, '{"vllm_config": {"weight_transfer_config": 1}}'),
                "/get_world_size": (200, '{"world_size": 1}'),
            },
            "cpu",
            "needs a CUDA device",
        ),
    ],
)
def test_a_server_without_what_trl_needs_is_one_line(monkeypatch, tmp_path, answers, device, message):
    import requests
    from trl.generation.vllm_client import VLLMClient

    monkeypatch.setattr("trl.generation.vllm_client.get_ip", lambda: "", raising=False)  # it is vLLM's

    with served(answers) as address, pytest.raises(UserError, match=message), lost.lost(tmp_path):
        client = VLLMClient.__new__(VLLMClient)
        client.session, client.base_url, client.group_port = requests.Session(), address, 1
        client.init_communicator(device)


@pytest.mark.parametrize("answers", [False, True])
def test_a_request_of_weights_or_tokens_has_a_time_limit(monkeypatch, answers):
    requests = pytest.importorskip("requests")
    urllib3 = pytest.importorskip("urllib3")
    monkeypatch.setattr(trl, "ANSWER_SECONDS", 0.2)
    with silent() as address:
        session = requests.Session()
        retry = urllib3.Retry(total=5, read=5, backoff_factor=0.1, allowed_methods=["POST"])
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
        address = address if answers else f"http://127.0.0.1:{free_port()}"
        client = SimpleNamespace(session=session, base_url=address, model="m")
        trainer = SimpleNamespace(prompts={"2 + 2?": [1]}, config=SimpleNamespace(max_new_tokens=8))
        start = time.monotonic()
        with pytest.raises(OSError):
            trl.VinePPOTrainer._check_server(trainer, client)
        assert time.monotonic() - start < 3.5  # five tries take longer


def test_a_server_that_does_not_tokenize_is_not_one_with_another_tokenizer():
    requests = pytest.importorskip("requests")
    with served({"/tokenize": (500, "no such model")}) as address:
        client = SimpleNamespace(session=requests.Session(), base_url=address, model="m")
        trainer = SimpleNamespace(prompts={"2 + 2?": [1]}, config=SimpleNamespace(max_new_tokens=8))
        with pytest.raises(UserError, match="answers /tokenize with status 500: no such model"):
            trl.VinePPOTrainer._check_server(trainer, client)


def test_errors_that_say_that_something_is_lost_end_the_process(monkeypatch, tmp_path):
    lines = []
    (tmp_path / "policy").mkdir()
    monkeypatch.setattr(os, "write", lambda _, line: lines.append(line.decode()))
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(code))
    gone = [ConnectionError("refused\nby host"), RuntimeError("[gloo] Connection closed"), torch.distributed.DistError("x")]
    for error in gone:
        with pytest.raises(SystemExit), lost.lost(tmp_path):
            raise error
    for defect in (ZeroDivisionError, FileNotFoundError, RuntimeError):  # a defect, also of the user's task, keeps its traceback
        with pytest.raises(defect), lost.lost(tmp_path):
            raise defect
    for full in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory: 8 bytes")):
        with pytest.raises(UserError, match="not enough memory: lower --sample_batch_size"), lost.lost(tmp_path):
            raise full
    with pytest.raises(SystemExit), lost.lost(tmp_path / "new"):
        raise ConnectionError("refused")
    assert lines[0] == f"process 0 ends: refused by host; go on with --resume {tmp_path}\n" and len(lines) == 4
    assert lines[3] == f"process 0 ends: refused; {tmp_path / 'new'} has no checkpoint yet\n"
