"""Delete what earlier runs kept to be faster: activations of frozen layers, decoded and drawn photos.

What a run wrote into its own folder stays.

python recipes/clear_cache.py
"""

from __future__ import annotations

import argparse


def main() -> None:
    """Delete, and say how much that freed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    from hf_finetune.data.decoded import photo_directory  # after the arguments, so that --help answers quickly
    from hf_finetune.data.drawn import drawn_directory
    from hf_finetune.data.stored_arrays import GIBIBYTE, clear
    from hf_finetune.training.features import feature_directory

    for directory in (feature_directory(), photo_directory(), drawn_directory()):
        print(f"{clear(directory) / GIBIBYTE:.2f} GiB freed in {directory}.")


if __name__ == "__main__":
    main()
