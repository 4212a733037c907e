"""
The peers: what can be measured where it is installed. None is a dependency of sluicegate.

Each module has a function for every work that the peer can do, with that work's name and
parameters; ``python -m benchmarks.peers.langgraph chain n=1000 rounds=3`` runs one.
"""

from typing import NamedTuple


class Peer(NamedTuple):
    """Its title, the distribution to install and the module that shows that it is."""

    title: str
    distribution: str
    module: str


PEERS = {
    "llama_index": Peer("LlamaIndex Workflows", "llama-index-workflows", "workflows"),
    "langgraph": Peer("LangGraph", "langgraph", "langgraph"),
    "pydantic_graph": Peer("pydantic-graph", "pydantic-graph", "pydantic_graph"),
    "burr": Peer("Burr", "burr", "burr"),
    "agent_framework": Peer("Agent Framework", "agent-framework-core", "agent_framework"),
    "autogen_core": Peer("AutoGen core", "autogen-core", "autogen_core"),
}
