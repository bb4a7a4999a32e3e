import json
import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "sqlalchemy", "flwr", "datasets", "typer", "client", "coordinator", "router"}
PROGRAM = """
import importlib, json, pkgutil, sys
sys.modules["rich"] = None  # structlog takes it when it is there; with this line it is not
import protocol
names = [module.name for module in pkgutil.walk_packages(protocol.__path__, "protocol.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_the_protocol_needs_none_of_the_heavy_libraries() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    names, loaded = json.loads(run.stdout)
    assert {"protocol.signing", "protocol.wire.grpc_server", "protocol.v1.intake_pb2_grpc"} <= set(names)
    assert HEAVY.isdisjoint(loaded), HEAVY.intersection(loaded)
