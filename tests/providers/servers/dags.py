"""DAGs for Airflow, whose task ends when the pipe GO of the environment has a writer."""

import os

from airflow.sdk import dag, task


def work():
    open(os.environ["GO"], "rb").close()


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
