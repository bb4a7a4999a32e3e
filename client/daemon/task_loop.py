"""Takes tasks from the SuperNode, as Flower's own executor does, and answers them with the installed app alone."""

import hashlib
import time
from collections.abc import Callable

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.daemon.app import Act, make_app, reply_to
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.fleet.reply import Reply

POLL_S, PAUSE_S = 0.2, 1.0


def check_app(digest: str, content: bytes, pool: Pool) -> None:
    """Let an app bundle pass if the pool's policy names its very bytes, whatever it calls itself (`APP_UNKNOWN`)."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest or found not in pool.spec.policy.apps:
        raise Refused(
            Code.APP_UNKNOWN, f"The app bundle {found[:16]} is not one that the pool allows.", "It was not run."
        )


def serve(
    act: Act,
    note: Callable[[str], object],
    pool: Pool,
    port: Callable[[], int],
    secret: bytes,
    *,
    stopped: Callable[[], bool],
    idle: Callable[[], None],
    keep_up: Callable[[], Pool] | None = None,
) -> None:
    """Take tasks from the SuperNode, whose port is another whenever it starts anew, until told to stop."""
    app = make_app(pool, act, note, keep_up)

    def answer(fab: Fab, message: Message, context: Context) -> Message:
        def refuse() -> Reply:
            raise refusal

        try:
            check_app(fab.hash_str, fab.content, pool)
        except Refused as error:
            refusal = error
            return reply_to(message, "", refuse, note)
        return app(message, context)

    methods = frozenset({"/flwr.proto.Runtime/AcquireTask"})
    allowed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods)
    at, acquire = port(), _connect(port(), allowed)
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while not stopped():
        try:
            if at != port():
                acquire.close()
                at, acquire = port(), _connect(port(), allowed)
            token = acquire.AcquireTask(wanted).token
            if token:
                _work_off(_connect(at, RuntimeTokenHttpInterceptor(token)), answer)
                continue
            idle()
            time.sleep(POLL_S)
        except httpx.HTTPError:
            time.sleep(PAUSE_S)  # the SuperNode starts, or is away; the daemon sees to it
        except Exception as error:  # noqa: BLE001 - one task's fault must not end the daemon
            note(f"a task failed: {type(error).__name__}")
            time.sleep(PAUSE_S)


def _work_off(runtime: RuntimeHttpClient, answer: Callable[[Fab, Message, Context], Message]) -> None:
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(runtime))
    heartbeat.start()
    try:
        message, context, _run, fab = pull_task_input(runtime)
        push_message(runtime, answer(fab, message, context), context)
        push_task_output(runtime, context, SubStatus.COMPLETED, "")
    finally:
        heartbeat.stop()
        runtime.close()


def _connect(port: int, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
    version = RuntimeVersionHttpInterceptor(component_name="greylag")
    return RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None, interceptors=[version, interceptor]
    )
