#!/usr/bin/env python3
"""Makes the Python stubs in ackstream/_proto from ../proto.

    python generate_protos.py            writes them
    python generate_protos.py --check    says whether the committed ones are up to date; ends with 1 when they are not

It runs under the Python that has grpcio-tools installed: requirements.txt pins its version, and the same version makes
the same bytes.
"""

import argparse
import difflib
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO_ROOT = HERE.parent / "proto"
SOURCE = PROTO_ROOT / "ackstream" / "v1" / "ackstream.proto"
MAX_LINE = 200  # characters; the descriptor is one line of many thousand
STUBS = HERE / "ackstream" / "_proto"


def main() -> int:
    """Generates or checks the stubs, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Makes the Python stubs in ackstream/_proto from ../proto.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the committed stubs differ")
    check: bool = parser.parse_args().check
    if not SOURCE.exists():
        print(f"{SOURCE} is missing: run this in a checkout of the whole repository", file=sys.stderr)
        return 66

    generated = generate()
    stale = [path for path, text in generated.items() if not path.exists() or path.read_text("utf-8") != text]
    if check:
        for path in stale:
            print_difference(path, generated[path])
        print("Stubs are out of date: run python generate_protos.py" if stale else "Stubs are up to date")
        return 1 if stale else 0
    for path in stale:
        path.write_text(generated[path], "utf-8")
    names = ", ".join(path.name for path in stale)
    print(f"Wrote {names} to {STUBS.relative_to(HERE)}" if stale else "Stubs are up to date")
    return 0


def generate() -> dict[Path, str]:
    """Returns the text of every stub by the path where it belongs."""
    # protoc's own files (google/protobuf/*.proto) come with grpcio-tools.
    well_known = str(files("grpc_tools").joinpath("_proto"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"-I{PROTO_ROOT}", f"-I{well_known}", f"--python_out={folder}", f"--pyi_out={folder}", str(SOURCE)]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc refused ../proto: what it said is above")
        made = Path(folder) / "ackstream" / "v1"
        # protoc names modules after the proto's folder; the stubs live in a private package.
        return {
            STUBS / path.name: path.read_text("utf-8").replace("'ackstream.v1.", "'ackstream._proto.")
            for path in sorted(made.iterdir())
        }


def print_difference(path: Path, wanted: str) -> None:
    """Prints what is committed against what the proto makes."""
    committed = path.read_text("utf-8") if path.exists() else ""
    name = str(path.relative_to(HERE))
    diff = difflib.unified_diff(committed.splitlines(), wanted.splitlines(), name, f"{name} (generated)", lineterm="")
    for line in diff:
        print(line[:MAX_LINE])


if __name__ == "__main__":
    sys.exit(main())
