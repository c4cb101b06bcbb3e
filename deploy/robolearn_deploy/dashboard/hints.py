"""Which episodes of a dataset to look at, and why, as JSON: number -> reasons. Run as a process of its own:

python -m robolearn_deploy.dashboard.hints DATASET
"""

from __future__ import annotations

import json
import os
import sys

from robolearn_data.dataset import Dataset
from robolearn_data.quality import quality
from robolearn_data.schema import UserError


def main(path: str) -> int:
    os.nice(10)
    try:
        found = quality(Dataset.open(path))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
        return 0
    print(json.dumps({"reasons": {e.episode: list(e.reasons) for e in found.episodes if e.reasons}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
