"""Imports all that the programs import sooner or later, once, in the process that all of them are forked from."""

import importlib

for _name in (
    "client.submission.submit", "coordinator.cli.main", "coordinator.cli.processes", "coordinator.registry.log_check",
    "coordinator.review.worker", "coordinator.serving.server", "peft", "router.model.routed_model",
    "router.pool.calibration", "tests.factories", "transformers.models.t5.modeling_t5",
):  # fmt: skip
    importlib.import_module(_name)
