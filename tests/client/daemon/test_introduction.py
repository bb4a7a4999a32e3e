"""What a daemon shows to the coordinator when it connects."""

from pathlib import Path

import pytest

from client.daemon.policy import write_policy
from client.daemon.state import DaemonFolder
from client.daemon.supervisor import Daemon
from protocol.errors import Refused
from protocol.fleet.attestation import challenge
from tests.client.conftest import Cli, Site, make_site
from tests.client.fake_coordinator import FakeCoordinator, serving


def test_a_daemon_shows_the_evidence_of_the_day(tmp_path: Path, site: Site, cli: Cli) -> None:
    fake = FakeCoordinator(site.pool, site.operator)
    with serving(fake) as address:
        here = make_site(tmp_path / "here", site.base, site.pool, site.operator, address)
        place = DaemonFolder(here.workspace)
        code, asked, _ = cli("daemon", "--challenge", "-w", here.workspace.root)
        node, daemon = place.prepare(), Daemon(place, lambda _: None)
        assert (code, asked.strip()) == (0, challenge(site.pool.digest, here.contributor.public, node.public))
        write_policy(place.policy, here.data)
        assert daemon._introduced(node)
        with place.policy.open("a") as file:
            file.write('\n[attestation]\nkind = "report"\nfile = "report.bin"\n')
        with pytest.raises(Refused, match=r"report\.bin"):
            daemon._introduced(node)  # the platform has not written it yet
        for raw in (b"first", b"second"):
            (here.workspace.root / "report.bin").write_bytes(raw)
            assert daemon._introduced(node)
    assert [each and each.raw for each in fake.attestations] == [None, b"first", b"second"]
