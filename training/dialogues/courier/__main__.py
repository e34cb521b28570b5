"""Write courier calls as JSON lines of `messages` and `tools`.

`python -m training.dialogues.courier --calls 2000 --first 0 --out calls.jsonl`. Deterministic.
"""

import argparse
from pathlib import Path

from training.data import whole, write_conversations
from training.dialogues.courier import dialogue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, required=True, help="how many")
    parser.add_argument("--first", type=int, default=0, help="seed of the first call; the others follow it")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with whole(options.out) as part:
        write_conversations(part, (dialogue(options.first + index) for index in range(options.calls)))


if __name__ == "__main__":
    main()
