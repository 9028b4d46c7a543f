"""Print what the steps of the pipeline printed, as one JSON: collect.py FOLDER NAME..."""

import json
import sys
from pathlib import Path


def main(folder: Path, names: list[str]) -> None:
    """Print models and predictions by name of the hold-out, scores and verdicts."""

    def read(name: str) -> dict:
        return json.loads((folder / f"{name}.json").read_text())

    print(
        json.dumps(
            {
                "models": {name: read(f"models/{name}") for name in names},
                "predictions": {name: read(f"predictions/{name}") for name in names},
                "scores": read("summary")["summary"],
                "verdicts": read("report")["verdicts"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
