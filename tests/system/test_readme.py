"""Every command of the README and of two pages runs, word for word but for names, addresses and numbers of steps."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from deploy.demo.processes import free_port
from protocol.errors import Code
from tests.house.sources import ROOT
from tests.system.town import write_rows

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", "docs/asking.md", "docs/campaigns.md")
SHORT = "--rank 4 --expert-steps 4 --gate-steps 2 --eval-every 2"
# A command that ends in & is a server: what follows may begin when its port answers.
WAIT = """
wait_for() {
    for _ in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.2; done; return 1
}
once() {
    for _ in $(seq 60); do "$@" && return; sleep 0.5; done; return 1
}
refused() {
    local code=$1 said; shift
    if said=$("$@" 2>&1); then echo "$* was not refused"; return 1; fi
    echo "$said"; [[ $said == *"[$code]"* ]]
}
"""


def script(blocks: list[str], base: Path, pool_port: int, router_port: int, fleet_port: int) -> str:
    """Join the shell blocks; make servers wait for their ports, and check what is refused."""
    text = "\n".join(blocks).replace("\\\n", " ")
    text = re.sub(
        r"^export .*$",
        f"export BASE={base} POOL=localhost:{pool_port} FLEET=localhost:{fleet_port}",
        text,
        flags=re.MULTILINE,
    )
    text = text.replace("coordinator init", f"coordinator init {SHORT}").replace(":7444", f":{router_port}")
    text = text.replace(":8080", f":{free_port()}").replace("curl http:", "curl -fsS http:")
    text = re.sub(r"^(greylag-coordinator serve .*&)$", rf"\1\nwait_for {pool_port}", text, flags=re.MULTILINE)
    text = re.sub(r"^(greylag-router serve .*&)$", rf"\1\nwait_for {router_port}", text, flags=re.MULTILINE)
    text = re.sub(r"^(greylag-coordinator fleet .*&)$", rf"\1\nwait_for {fleet_port}", text, flags=re.MULTILINE)
    # A campaign is allowed once it has asked.
    text, found = re.subn(r"^(greylag-client daemon .* --allow 1)$", r"once \1", text, flags=re.MULTILINE)
    assert found == 1
    # One expert can be put in no other order, and nothing waits to be promoted: both commands say so.
    for kind, code in (("calibrate", Code.EXPERTS_EXHAUSTED), ("evaluate", Code.CANDIDATE_UNKNOWN)):
        command = rf"^(greylag-coordinator campaign start {kind} .*)$"
        text, found = re.subn(command, rf"refused {code.name} \1", text, flags=re.MULTILINE)
        assert found == 1
    return f"set -euo pipefail\n{WAIT}\n{text}\n"


def test_the_readme_runs(t5_base: Path, tmp_path: Path) -> None:
    found = [block for page in PAGES for block in BLOCK.findall((ROOT / page).read_text())]
    shell = [text for language, text in found if language == "sh"]
    python = [text for language, text in found if language == "python"]
    assert len(shell) >= 5
    assert len(python) == 2
    pool_port, router_port, fleet_port = free_port(), free_port(), free_port()
    write_rows(tmp_path / "notes.jsonl")
    program = (
        "\n".join(python)
        .replace("pool.example.org:7443", f"localhost:{pool_port}")
        .replace("google/t5-v1_1-small", str(t5_base))
    )
    (tmp_path / "snippet.py").write_text(program)
    (tmp_path / "readme.sh").write_text(
        script(shell, t5_base, pool_port, router_port, fleet_port) + f"{sys.executable} snippet.py\necho all done\n"
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            ["bash", "readme.sh"], cwd=tmp_path, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        status = process.wait(280)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
    said = (tmp_path / "out").read_text()
    assert status == 0, said
    assert said.rstrip().endswith("all done")
    assert "released" in said
    assert "Who answered" in (tmp_path / "who-answered.html").read_text()
    assert {path.name for path in (tmp_path / "one-lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.sig",
    }
