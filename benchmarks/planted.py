"""Which score finds a persona whose weights are known? Three architectures, three seeds, trained here.

    python -m benchmarks.planted

No data and no download: the models are tiny and train themselves, some seconds each on one core.
"""

from __future__ import annotations

from benchmarks.common import machine, write
from personae.evaluation.suites import suite_to_dict, suite_to_markdown
from personae.evaluation.suites.planted import run


def main() -> None:
    """Train, ask every score, write the result."""
    result = run()
    print(suite_to_markdown(result))
    print(write("planted", {**suite_to_dict(result), "machine": machine(), "command": "python -m benchmarks.planted"}))


if __name__ == "__main__":
    main()
