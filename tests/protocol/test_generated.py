import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "protocol" / "v1").glob("*.proto"))
    plugins = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    kinds = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    kinds += [f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *kinds, *sources],
        cwd=ROOT,
        env=plugins,
        check=True,
        timeout=120,
    )

    def texts(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.glob("*_pb2*.py*")}

    fresh = texts(tmp_path / "protocol" / "v1")
    assert len(fresh) == 4 * len(sources)
    assert texts(ROOT / "protocol" / "v1") == fresh, "run the command of this test with the repository as output folder"
