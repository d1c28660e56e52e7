"""What was last compared with real vLLM: a digest of the code, which a `make test-vllm` that passed keeps in a file.

`python compared.py` exits with 0 where the code is still the same, so that CI knows whether to compare again; it needs
no other commit to look at, which a CI may not have.
"""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).with_name("compared.txt")
CODE = ["emulator", "proxy", "tests/differential", "tests/e2e/live.py", "tests/e2e/test_live_engine.py"]


def digest() -> str:
    """Of the names and contents of all files that are compared, as they are in the working tree."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    found = sha256()
    for path in sorted({ROOT / name for name in names if name} - {KEPT}):
        if path.is_file():
            found.update(f"{path.relative_to(ROOT)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def keep() -> None:
    KEPT.write_text(digest() + "\n")


def same() -> bool:
    return KEPT.exists() and KEPT.read_text().strip() == digest()


if __name__ == "__main__":
    if not same():
        sys.exit("emulator/ or proxy/ changed since real vLLM was last compared with them: make test-vllm")
    print("emulator/ and proxy/ are as they were when real vLLM was last compared with them")
