"""Flower's simulation engine: virtual nodes in processes of Ray, which comes with the extra `simulation`."""

import importlib.util
import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence

from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_INTERVAL_INF, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import start_vce
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run as FlowerRun
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from coordinator.fleet.flower.client import Run

OBJECT_STORE_BYTES = 100 << 20
"""What Ray may keep of messages in memory; orders and answers are a few hundred bytes each."""
_RUN, _TASK = 1, 1


def is_here() -> bool:
    """Tell whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


class RayEngine:
    """Virtual nodes that Flower's engine runs in as many processes as there are processors.

    Args:
        app: Answers for all of them.
        publics: Their keys, by number.
    """

    name = "ray"

    def __init__(self, app: ClientApp, publics: Sequence[str]) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # no talk, no tips
        logging.getLogger("flwr").setLevel(logging.ERROR)
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        state = factory.state()
        assert isinstance(state, InMemoryLinkState)  # noqa: S101 - by its name
        run = FlowerRun.create_empty(_RUN)
        run.primary_task_id, run.federation_id = _TASK, NOOP_FEDERATION_ID
        state.run_ids[_RUN] = RunRecord(run=run)
        state.task_store[_TASK] = Task(task_id=_TASK, run_id=_RUN)
        self._state, self._stopped = state, threading.Event()
        self._nodes = [
            state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public.encode(), HEARTBEAT_INTERVAL_INF)
            for public in publics
        ]
        self._grid = InMemoryGrid(factory)
        self._grid.set_run(run)
        config = {
            "init_args": {
                "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, "log_to_driver": False,
                "logging_level": "ERROR",
            },
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        }  # fmt: skip
        options = {
            "backend_name": "ray", "backend_config_json_stream": json.dumps(config), "app_dir": "", "is_app": False,
            "f_stop": self._stopped, "run": run, "metrics": VceMetrics(), "client_app": app, "state_factory": factory,
            "existing_nodes_mapping": {node: number for number, node in enumerate(self._nodes)},
        }  # fmt: skip
        self._thread = threading.Thread(target=start_vce, kwargs=options)
        self._thread.start()

    def as_run(self) -> Run:
        """Be the run of a campaign."""
        return Run(self._grid, task=_TASK, run=_RUN, node=SUPERLINK_NODE_ID)

    def come(self, numbers: Iterable[int]) -> None:
        """Let nodes appear."""
        for number in numbers:
            self._state.acknowledge_node_heartbeat(self._nodes[number], HEARTBEAT_INTERVAL_INF)

    def close(self) -> None:
        """End Ray and its processes."""
        self._stopped.set()
        self._thread.join()
