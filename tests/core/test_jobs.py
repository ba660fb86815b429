"""One worker, in order, that nothing stops."""

import threading
from collections.abc import Callable

import pytest

import workbench as wb
from workbench import Progress
from workbench.core.errors import InvalidInput
from workbench.core.jobs import QUEUE_LIMIT, Job, Worker
from workbench.steps import prompt, quantize

LONG = 60.0  # seconds after which a hanging test is called a failure


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


class Gate:
    """Work that reports that it started, then waits to be let through."""

    def __init__(self) -> None:
        self.started, self.open = threading.Event(), threading.Event()

    def __call__(self, progress: Progress) -> str:
        self.started.set()
        assert self.open.wait(LONG)
        progress.check()
        return "through"


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open.set()


def test_jobs_run_in_order_in_one_thread_that_is_not_ours(worker: Worker) -> None:
    seen: list[tuple[int, str]] = []
    jobs = [
        worker.submit(f"job {i}", lambda _, i=i: seen.append((i, threading.current_thread().name))) for i in range(10)
    ]
    assert all(job.wait(LONG) for job in jobs)
    assert [i for i, _ in seen] == list(range(10))
    assert len({name for _, name in seen}) == 1
    assert seen[0][1] != threading.current_thread().name
    assert worker.jobs == ()


def test_result_and_status(worker: Worker, gate: Gate) -> None:
    running = worker.submit("gate", gate)
    waiting = worker.submit("next", lambda _: 42)
    assert gate.started.wait(LONG)
    assert (running.status, waiting.status) == ("running", "queued")
    assert worker.jobs == (running, waiting)
    assert not waiting.wait(0)
    gate.open.set()
    assert waiting.wait(LONG)
    assert (running.status, running.result) == ("done", "through")
    assert (waiting.status, waiting.result) == ("done", 42)


def test_cancelling_a_running_job(worker: Worker, gate: Gate) -> None:
    job = worker.submit("gate", gate)
    assert gate.started.wait(LONG)
    job.cancel()
    gate.open.set()
    assert job.wait(LONG)
    assert (job.status, job.result) == ("cancelled", None)


def test_cancelling_a_queued_job_means_it_never_starts(worker: Worker, gate: Gate) -> None:
    ran: list[int] = []
    worker.submit("gate", gate)
    queued = worker.submit("queued", lambda _: ran.append(1))
    assert gate.started.wait(LONG)
    queued.cancel()
    gate.open.set()
    assert queued.wait(LONG)
    assert (queued.status, ran) == ("cancelled", [])


def test_cancelling_an_ended_job_changes_nothing(worker: Worker) -> None:
    job = worker.submit("quick", lambda _: 1)
    assert job.wait(LONG)
    job.cancel()
    assert (job.status, job.result) == ("done", 1)


def test_our_errors_arrive_as_one_sentence_without_a_traceback(worker: Worker) -> None:
    def work(_: Progress) -> None:
        raise InvalidInput("The prompt is empty: type a question.")

    job = worker.submit("ask", work)
    assert job.wait(LONG)
    assert (job.status, job.error, job.details) == ("failed", "The prompt is empty: type a question.", "")


@pytest.mark.parametrize("error", [ZeroDivisionError("a secret detail"), KeyboardInterrupt(), SystemExit(3)])
def test_unexpected_errors_keep_the_worker_alive(worker: Worker, error: BaseException) -> None:
    def work(_: Progress) -> None:
        raise error

    job = worker.submit("fail", work)
    assert job.wait(LONG)
    assert job.status == "failed"
    assert type(error).__name__ in job.error
    assert "Traceback" in job.details
    assert "secret" not in job.error
    after = worker.submit("after", lambda _: "alive")
    assert after.wait(LONG)
    assert after.result == "alive"


def test_a_listener_that_fails_does_not_stop_the_work(worker: Worker) -> None:
    def listen(_: Job) -> None:
        raise RuntimeError("cannot draw")

    job = worker.submit("packing", lambda progress: sum(progress.track("packing", range(5), 5)), listen)
    assert job.wait(LONG)
    assert (job.status, job.result) == ("done", 10)
    assert worker.submit("after", lambda _: 1).wait(LONG)


def test_listener_hears_start_progress_and_end(worker: Worker) -> None:
    heard: list[tuple[str, int]] = []
    ended = threading.Event()

    def listen(job: Job) -> None:
        heard.append((job.status, job.progress.done))
        if job.ended:
            ended.set()

    worker.submit("packing", lambda progress: list(progress.track("packing", range(3), 3)), listen)
    assert ended.wait(LONG)
    assert heard[0] == ("running", 0)
    assert ("running", 3) in heard
    assert heard[-1] == ("done", 3)


def test_a_full_queue_refuses_and_recovers(worker: Worker, gate: Gate) -> None:
    jobs = [worker.submit("gate", gate)]
    jobs += [worker.submit("wait", lambda _: None) for _ in range(QUEUE_LIMIT - 1)]
    with pytest.raises(InvalidInput, match=str(QUEUE_LIMIT)):
        worker.submit("one too many", lambda _: None)
    gate.open.set()
    assert all(job.wait(LONG) for job in jobs)
    assert worker.submit("again", lambda _: None).wait(LONG)


def test_closing_cancels_what_waits_and_refuses_more(worker: Worker, gate: Gate) -> None:
    running = worker.submit("gate", gate)
    queued = worker.submit("queued", lambda _: None)
    assert gate.started.wait(LONG)
    worker.close()
    with pytest.raises(InvalidInput, match="closed"):  # also while the last job is still running
        worker.submit("late", lambda _: None)
    gate.open.set()
    assert running.wait(LONG)
    assert queued.wait(LONG)
    assert (running.status, queued.status) == ("cancelled", "cancelled")
    with pytest.raises(InvalidInput, match="closed"):
        worker.submit("later", lambda _: None)


def test_twenty_rapid_jobs_beside_the_main_thread_give_right_answers(worker: Worker, base: wb.Variant) -> None:
    steps = [quantize.Int8(), quantize.NF4(), prompt.System(text="Be <|im_start|>brief<|im_end|>.")]
    question = "What is a <|im_end|>lobster?"
    wanted = [base.apply(step).generate(question, max_new_tokens=6).token_ids for step in steps]
    plain = base.generate("What is a lobster?", max_new_tokens=6).token_ids

    def work(step: wb.Step) -> Callable[[Progress], tuple[int, ...]]:
        return lambda progress: base.apply(step, progress=progress).generate(question, max_new_tokens=6).token_ids

    jobs = [worker.submit(f"job {i}", work(steps[i % 3])) for i in range(20)]
    while not jobs[-1].ended:
        assert base.generate("What is a lobster?", max_new_tokens=6).token_ids == plain
    for i, job in enumerate(jobs):
        assert job.wait(LONG)
        assert (job.status, job.error, job.details) == ("done", "", "")
        assert job.result == wanted[i % 3]
