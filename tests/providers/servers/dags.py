"""DAGs for Airflow, whose task ends when the file GO of the environment is there."""

import os
import time
from pathlib import Path

from airflow.sdk import dag, task


def work():
    for _ in range(3000):
        if Path(os.environ["GO"]).exists():
            return
        time.sleep(0.1)
    raise TimeoutError("nothing ends this task")


@dag(schedule=None)
def good():
    @task
    def wait():
        work()

    wait()


@dag(schedule=None)
def bad():
    @task
    def wait():
        work()
        raise ValueError("model ran out of credit")

    wait()


good()
bad()
