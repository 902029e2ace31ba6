"""Tasks for Celery, which end when the pipe GO of the environment has a writer."""

import os

from celery import Celery

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(worker_send_task_events=True, task_send_sent_event=True, task_track_started=True)


def work():
    open(os.environ["GO"], "rb").close()


@app.task
def good():
    work()
    return {"answer": 42}


@app.task
def bad():
    work()
    raise ValueError("model ran out of credit")


@app.task(bind=True, max_retries=1)
def flaky(self):
    work()
    if self.request.retries == 0:
        raise self.retry(countdown=2)
