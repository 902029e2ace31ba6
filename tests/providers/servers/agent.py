"""A graph for LangGraph, whose node does what the input says and ends when the pipe GO of the environment has a writer."""

import os
from typing import TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt


class State(TypedDict, total=False):
    mode: str
    answer: str


def work(state):
    if state["mode"] == "ask":
        return {"answer": interrupt({"question": "publish?"})}
    open(os.environ["GO"], "rb").close()
    if state["mode"] == "bad":
        raise ValueError("model ran out of credit")
    return {"answer": "42"}


builder = StateGraph(State)
builder.add_node("work", work)
builder.add_edge(START, "work")
builder.add_edge("work", END)
graph = builder.compile()
